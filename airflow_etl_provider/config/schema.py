"""The JSON Schema of a pipeline file, so that editors complete keys and mark mistakes."""

from __future__ import annotations

import json
from typing import Any

from airflow_etl_provider.config.models import Pipeline, Stream


def pipeline_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a pipeline file and of the ``defaults.yaml`` beside it.

    Any file that loads is valid under it. It does not require keys that ``defaults.yaml`` or the top
    level may supply, and rules between keys are left to the loader, which names the line.
    """
    schema = Pipeline.model_json_schema(by_alias=False)
    definitions: dict[str, Any] = schema["$defs"]
    for definition in definitions.values():
        definition.pop("required", None)
    stream = definitions["Stream"]
    quality = stream["properties"]["quality"]
    expectations = definitions["Quality"]["properties"]["expectations"]
    stream["properties"]["quality"] = {
        "description": quality.get("description", ""),
        "anyOf": [
            {"type": "array", "items": expectations["items"]},
            {"type": "string", "minLength": 1},
            {"$ref": "#/$defs/Quality"},
            {"type": "null"},
        ],
    }
    schema["properties"] |= {name: stream["properties"][name] for name in Stream.model_fields}
    schema.pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pipeline of airflow-etl-provider",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text() -> str:
    """The schema as it stands in ``docs/pipeline.schema.json``, in the order of the models."""
    return json.dumps(pipeline_schema(), indent=2, ensure_ascii=False) + "\n"
