"""OpenLineage datasets and facets of the operators; uses the OpenLineage client, not Airflow."""
