"""DAGs from declared pipelines: :func:`build_pipeline` and :func:`load_pipelines`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_etl_provider.factories.dag import build_pipeline
    from airflow_etl_provider.factories.yaml_folder import load_pipelines

__all__ = ["build_pipeline", "load_pipelines"]


def __getattr__(name: str) -> Any:
    """Import Airflow only when one of the two functions is asked for."""
    if name == "build_pipeline":
        from airflow_etl_provider.factories.dag import build_pipeline

        return build_pipeline
    if name == "load_pipelines":
        from airflow_etl_provider.factories.yaml_folder import load_pipelines

        return load_pipelines
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
