"""What Airflow shows of this provider (``airflow providers get airflow-etl-provider``)."""

from __future__ import annotations

from typing import Any

_GUIDE = "https://www.postgresql.org/docs/current/ddl-partitioning.html"


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata in the shape of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-etl-provider",
        "name": "ETL for PostgreSQL warehouses",
        "description": (
            "Keeps a PostgreSQL warehouse fresh: incremental extraction at COPY speed, audit with Great "
            "Expectations before publish, and atomic partition swaps, with OpenLineage events."
        ),
        "integrations": [
            {
                "integration-name": "PostgreSQL warehouse ETL",
                "external-doc-url": _GUIDE,
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": "PostgreSQL warehouse ETL",
                "python-modules": [
                    "airflow_etl_provider.operators.extract",
                    "airflow_etl_provider.operators.transform",
                    "airflow_etl_provider.operators.validate",
                    "airflow_etl_provider.operators.publish",
                    "airflow_etl_provider.operators.maintenance",
                    "airflow_etl_provider.operators.dead_letters",
                ],
            }
        ],
        "hooks": [
            {
                "integration-name": "PostgreSQL warehouse ETL",
                "python-modules": ["airflow_etl_provider.hooks.etl_postgres"],
            }
        ],
    }
