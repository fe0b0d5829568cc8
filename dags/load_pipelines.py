from airflow_etl_provider.factories import load_pipelines
dags = load_pipelines("pipelines")        # relative to this file
globals().update(dags)
