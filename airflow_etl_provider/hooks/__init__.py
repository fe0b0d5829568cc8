"""Airflow connections as endpoints, and our errors as Airflow's."""
