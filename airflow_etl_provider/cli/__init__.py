"""The command line, ``airflow-etl``: look at streams and move their watermarks from any machine."""
