"""Values, pure decisions, ports and use cases. Imports nothing of Airflow and no database driver."""
