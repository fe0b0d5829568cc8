"""The JSON Schema of a pipeline file agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from airflow_etl_provider.config.files import read_pipeline
from airflow_etl_provider.config.models import Pipeline
from airflow_etl_provider.config.schema import pipeline_schema, schema_text

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "dags" / "pipelines"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def as_editors_see_it(path: Path) -> Any:
    return json.loads(json.dumps(yaml.safe_load(path.read_text()), default=str))


def test_the_schema_is_a_schema() -> None:
    """Draft 2020-12, the same whenever it is produced."""
    jsonschema.Draft202012Validator.check_schema(pipeline_schema())
    assert pipeline_schema() == pipeline_schema()


def test_the_documented_schema_is_that_of_the_models() -> None:
    """After a change of the models:

    ``python -c "from airflow_etl_provider.config.schema import schema_text; print(schema_text(), end='')"
    > docs/pipeline.schema.json``
    """
    assert (ROOT / "docs" / "pipeline.schema.json").read_text(encoding="utf-8") == schema_text()
    assert json.loads(schema_text()) == pipeline_schema()


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_files_that_load_are_valid(path: Path) -> None:
    """An editor does not mark what the loader takes."""
    read_pipeline(path)
    jsonschema.validate(as_editors_see_it(path), pipeline_schema())


@pytest.mark.parametrize(
    "source",
    [
        {"window": "watermark", "lookback": "PT1H"},
        {"window": "watermark", "lookback": 1000, "cursor_origin": "application"},
        {"settle_delay": 0, "settle_timeout": 90.5, "settle_ignore": ["reporting"]},
        {"lookback": None, "cursor_origin": None, "settle_delay": None, "settle_ignore": None},
        {"rename": {"c": "d"}, "personal": {"x": None, "y": "null", "z": "drop"}, "types": None},
        {"personal": {"x": "hash"}, "hash_conn_id": "k", "zero_dates": None, "null_cursor": None},
        {"open_window": "clamp", "on_empty": "skip", "slice_rows": 0, "shards": 4},
        {"on_conversion_error": "quarantine"},
        {"row_security": "apply", "types": {"x": "numeric(10,2)"}, "zero_dates": "null"},
        {"null_cursor": "fail", "open_window": None, "on_empty": None, "slice_rows": None},
        {"rename": None, "personal": None, "shards": None, "row_security": None},
    ],
)
def test_every_form_of_a_value_is_valid(source: dict[str, Any]) -> None:
    """Numbers and texts both, where the loader takes both."""
    target = {"conn_id": "t", "table": "a.b"}
    own = {"conn_id": "s", "table": "a.b", "cursor": "c"} | source
    data = {"pipeline": "p", "stream": "s", "kind": "events", "source": own, "target": target}
    Pipeline.model_validate(data)
    jsonschema.validate(data, pipeline_schema())


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"window": "delta"}},
        {"source": {"window": "nulls"}},
        {"source": {"personal": {"x": "keep"}}},
        {"source": {"personal": ["x"]}},
        {"source": {"rename": {"x": None}}},
        {"source": {"null_cursor": "skip"}},
        {"source": {"slice_rows": -1}},
        {"source": {"shards": 0}},
        {"source": {"zero_dates": "zero"}},
        {"partitioned": "yes"},
        {"source": {"lookback": 1.5}},
        {"source": {"lookback": -1}},
        {"source": {"settle_ignore": "reporting"}},
        {"source": {"cursor_origin": "server"}},
        {"target": {"strategy": "upsert"}},
        {"cachup": True},
        {"kind": "event"},
        {"retries": "3"},
        {"source": {"tabel": "x"}},
        {"target": {"partition": {"every": "monthly"}}},
        {"quality": [{"type": "not_null"}]},
        {"streams": [{"strem": "x"}]},
    ],
)
def test_editors_mark_what_the_loader_refuses(change: dict[str, Any]) -> None:
    """Unknown keys and values are marked at every level."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(change, pipeline_schema())


def test_every_key_is_explained() -> None:
    """Completion without a description is a guess."""
    schema = pipeline_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for name, field in definition.get("properties", {}).items():
            assert field.get("description"), name
