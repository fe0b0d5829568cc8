"""Apache Airflow provider that keeps a PostgreSQL warehouse fresh."""

__version__ = "0.1.0"
