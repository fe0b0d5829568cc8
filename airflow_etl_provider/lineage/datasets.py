"""What each operator tells OpenLineage.

Staged tables are private and gone after publish, so they are never datasets: extract reads the source,
transform what it looks up beside the batch, validate states its assertions on the target it guards, publish writes the target once it is published.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from airflow_etl_provider.core.load import Column, Manifest, Published, Strategy
from airflow_etl_provider.core.ports import SourceShape

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset

Dataset = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Inputs and outputs of one task."""

    inputs: list[InputDataset] = field(default_factory=list)
    outputs: list[OutputDataset] = field(default_factory=list)


class Checked(Protocol):
    """One audited expectation, without values of rows."""

    @property
    def type(self) -> str: ...
    @property
    def success(self) -> bool: ...
    @property
    def column(self) -> str | None: ...
    @property
    def severity(self) -> Any: ...
    @property
    def kwargs(self) -> Mapping[str, Any]: ...
    @property
    def name(self) -> str: ...
    @property
    def finding(self) -> str: ...


class CheckedTable(Protocol):
    """An audit as lineage needs it."""

    @property
    def rows(self) -> int | None: ...
    @property
    def results(self) -> Iterable[Checked]: ...


def source_lineage(shape: SourceShape | None) -> Lineage:
    """The source as it is known before it was read, or when reading it failed."""
    from openlineage.client.event_v2 import InputDataset

    if shape is None:
        return Lineage()
    columns = [] if shape.is_query else [Column(c.name, c.type) for c in shape.columns]
    return Lineage(
        inputs=[
            InputDataset(namespace=namespace, name=name, facets=_described(columns, namespace))
            for namespace, name in shape.datasets
        ]
    )


def extract_lineage(manifest: Manifest | None) -> Lineage:
    """The source, with its schema, rows and bytes read, and the window as a subset."""
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import (
        base_subset_dataset as subset,
    )
    from openlineage.client.facet_v2 import (
        input_statistics_input_dataset as statistics,
    )

    if manifest is None:
        return Lineage()
    facets: dict[str, Any] = {
        "inputStatistics": statistics.InputStatisticsInputDatasetFacet(
            rowCount=manifest.rows, size=manifest.bytes
        )
    }
    if manifest.window.is_range and manifest.cursor is not None:
        facets["subset"] = subset.InputSubsetInputDatasetFacet(
            inputCondition=_between(subset, manifest)
        )
    return Lineage(
        inputs=[
            InputDataset(
                namespace=namespace,
                name=name,
                facets=_described(_of_source(manifest), namespace),
                # What a query read of each of its tables is not known.
                inputFacets=facets if len(manifest.source_datasets) == 1 else {},
            )
            for namespace, name in manifest.source_datasets
        ]
    )


def transform_lineage(manifest: Manifest | None) -> Lineage:
    """The tables that a transform has looked up."""
    return Lineage(inputs=_looked_up(manifest))


def _looked_up(manifest: Manifest | None) -> list[InputDataset]:
    from openlineage.client.event_v2 import InputDataset

    if manifest is None or manifest.transformed is None:
        return []
    return [
        InputDataset(namespace=namespace, name=name, facets=_described([], namespace))
        for namespace, name in manifest.transformed.reads
    ]


def validate_lineage(
    columns: Iterable[Column], report: CheckedTable | None, dataset: Dataset | None
) -> Lineage:
    """The guarded table, with one assertion for each expectation: what was expected, and counts of what was
    found.
    """
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as assertions
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset as metrics

    if report is None or dataset is None:
        return Lineage()
    namespace, name = dataset
    columns = tuple(columns)
    known = {column.name for column in columns}
    found = [
        assertions.Assertion(
            assertion=result.type,
            success=result.success,
            # Several columns are none that the schema has; the name tells them.
            column=result.column if result.column in known else None,
            severity=_SEVERITIES[str(result.severity)],
            name=result.name,
            expected=_expected(result),
            actual=result.finding[:_LONGEST],
        )
        for result in report.results
    ]
    facets: dict[str, Any] = {
        "dataQualityAssertions": assertions.DataQualityAssertionsDatasetFacet(assertions=found),
        "dataQualityMetrics": metrics.DataQualityMetricsInputDatasetFacet(
            columnMetrics={}, rowCount=report.rows
        ),
    }
    return Lineage(
        inputs=[
            InputDataset(
                namespace=namespace,
                name=name,
                facets=_described(columns, namespace),
                inputFacets=facets,
            )
        ]
    )


def _expected(result: Checked) -> str | None:
    """The limits of an expectation, as its suite has them."""
    limits = {key: value for key, value in result.kwargs.items() if key != "column"}
    text = json.dumps(limits, default=str, ensure_ascii=False)
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…") if limits else None


#: A set of thousands of values is no lineage.
_LONGEST = 500
#: OpenLineage knows two severities: what fails a run, and what warns.
_SEVERITIES = {"critical": "error", "warning": "warn", "info": "warn"}


def publish_lineage(
    manifest: Manifest | None, published: Published | None, dataset: Dataset | None
) -> Lineage:
    """The target, as an output only once it is published."""
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import (
        base_subset_dataset as subset,
    )
    from openlineage.client.facet_v2 import (
        dataset_version_dataset as version,
    )
    from openlineage.client.facet_v2 import (
        lifecycle_state_change_dataset as lifecycle,
    )
    from openlineage.client.facet_v2 import (
        output_statistics_output_dataset as statistics,
    )

    if manifest is None or dataset is None:
        return Lineage()
    inputs = [
        InputDataset(
            namespace=source_namespace,
            name=source_name,
            facets=_described(_of_source(manifest), source_namespace),
        )
        for source_namespace, source_name in manifest.source_datasets
    ]
    inputs += _looked_up(manifest)
    if published is None or published.overtaken_by is not None:
        return Lineage(inputs=inputs)
    namespace, name = dataset
    facets = _described(manifest.columns, namespace)
    made_of = [column for column in manifest.columns if column.source is not None]
    if len(manifest.source_datasets) == 1 and made_of:
        facets["columnLineage"] = _column_lineage(manifest.source_datasets[0], made_of)
    facets["version"] = version.DatasetVersionDatasetFacet(datasetVersion=published.load_id)
    change = lifecycle.LifecycleStateChange
    facets["lifecycleStateChange"] = lifecycle.LifecycleStateChangeDatasetFacet(
        lifecycleStateChange=change.OVERWRITE
        if published.strategy is Strategy.SWAP
        else change.ALTER
    )
    output: dict[str, Any] = {
        "outputStatistics": statistics.OutputStatisticsOutputDatasetFacet(
            rowCount=published.rows_inserted + published.rows_updated,
            size=sum(partition.bytes for partition in published.partitions) or None,
        )
    }
    if published.partitions:
        output["subset"] = subset.OutputSubsetOutputDatasetFacet(
            outputCondition=subset.PartitionSubsetCondition(
                partitions=[
                    subset.Partition(
                        identifier=partition.name, dimensions={"bound": partition.bound}
                    )
                    for partition in published.partitions
                ]
            )
        )
    return Lineage(
        inputs=inputs,
        outputs=[OutputDataset(namespace=namespace, name=name, facets=facets, outputFacets=output)],
    )


def _described(columns: Iterable[Column], namespace: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import datasource_dataset, schema_dataset

    facets: dict[str, Any] = {
        "dataSource": datasource_dataset.DatasourceDatasetFacet(name=namespace, uri=namespace)
    }
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name=column.name, type=column.type)
        for column in columns
    ]
    if fields:
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
    return facets


def _of_source(manifest: Manifest) -> list[Column]:
    """The columns as the source calls them, where that is known; a transform reads more than it gives."""
    columns = manifest.extracted.columns
    return [Column(c.source, c.type) for c in columns if c.source is not None]


def _column_lineage(source: Dataset, columns: Iterable[Column]) -> Any:
    """Each column is one of the source's, as it is or, where it is personal, masked."""
    from openlineage.client.facet_v2 import column_lineage_dataset as lineage

    namespace, name = source
    fields: Mapping[str, Any] = {
        column.name: lineage.Fields(
            inputFields=[
                lineage.InputField(
                    namespace=namespace,
                    name=name,
                    field=column.source or column.name,
                    transformations=[
                        lineage.Transformation(type="DIRECT", subtype="IDENTITY")
                        if column.personal is None
                        else lineage.Transformation(
                            type="DIRECT",
                            subtype="TRANSFORMATION",
                            description=column.personal,
                            masking=True,
                        )
                    ],
                )
            ]
        )
        for column in columns
    }
    return lineage.ColumnLineageDatasetFacet(fields=dict(fields))


def _between(subset: Any, manifest: Manifest) -> Any:
    """The window as OpenLineage writes conditions; an open side is left out."""
    window = manifest.window
    sides = [
        subset.CompareSubsetCondition(
            left=subset.FieldBaseCompareExpression(field=manifest.cursor),
            right=subset.LiteralCompareExpression(value=bound),
            comparison=comparison,
        )
        for bound, comparison in (
            (window.low, "GREATER_EQUAL_THAN" if window.bounds[0] == "[" else "GREATER_THAN"),
            (window.high, "LESS_THAN" if window.bounds[1] == ")" else "LESS_EQUAL_THAN"),
        )
        if bound is not None
    ]
    if len(sides) == 1:
        return sides[0]
    return subset.BinarySubsetCondition(left=sides[0], right=sides[1], operator="AND")
