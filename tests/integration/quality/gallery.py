"""A case that holds and one that fails for every core expectation, on one table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

TABLE = """
CREATE TABLE etl_staging.every_type AS
SELECT i AS id, 'UA' AS carrier, NULL::text AS empty, i AS dep, i + 5 AS arr, i AS twin,
       i % 2 AS bit, i % 4 AS quarter, i / 3.0 AS ratio, i::float8 AS real,
       date '2013-01-01' + i AS day, '{"a": 1}' AS doc, 100 - i AS descending,
       CASE WHEN i = 100 THEN 100000 ELSE i % 10 END AS spiked
FROM generate_series(1, 100) AS i
"""
PAIR = {"column_A": "dep", "column_B": "twin"}
HALVES = {"values": [0, 1], "weights": [0.5, 0.5]}
NO_PROVIDER = "using SqlAlchemyExecutionEngine"
DAYS = [(date(2013, 1, 1) + timedelta(days=i)).isoformat() for i in range(1, 101)]
LOPSIDED = {"values": [0, 1], "weights": [0.99, 0.01]}

# type: (kwargs that hold, kwargs that fail)
JUDGED: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "expect_column_distinct_values_to_be_in_set": (
        {"column": "bit", "value_set": [0, 1]},
        {"column": "bit", "value_set": [0]},
    ),
    "expect_column_distinct_values_to_contain_set": (
        {"column": "bit", "value_set": [0]},
        {"column": "bit", "value_set": [7]},
    ),
    "expect_column_distinct_values_to_equal_set": (
        {"column": "bit", "value_set": [0, 1]},
        {"column": "bit", "value_set": [0, 1, 2]},
    ),
    "expect_column_kl_divergence_to_be_less_than": (
        {"column": "bit", "partition_object": HALVES, "threshold": 0.1},
        {"column": "bit", "partition_object": LOPSIDED, "threshold": 0.1},
    ),
    "expect_column_max_to_be_between": (
        {"column": "id", "max_value": 100},
        {"column": "id", "max_value": 99},
    ),
    "expect_column_mean_to_be_between": (
        {"column": "id", "min_value": 50, "max_value": 51},
        {"column": "id", "min_value": 51},
    ),
    "expect_column_median_to_be_between": (
        {"column": "id", "min_value": 50, "max_value": 51},
        {"column": "id", "min_value": 52},
    ),
    "expect_column_min_to_be_between": (
        {"column": "day", "min_value": "2013-01-02"},
        {"column": "day", "min_value": "2013-01-03"},
    ),
    "expect_column_most_common_value_to_be_in_set": (
        {"column": "carrier", "value_set": ["UA"]},
        {"column": "carrier", "value_set": ["DL"]},
    ),
    "expect_column_pair_values_a_to_be_greater_than_b": (
        {"column_A": "arr", "column_B": "dep"},
        {"column_A": "dep", "column_B": "arr"},
    ),
    "expect_column_pair_values_to_be_equal": (PAIR, {"column_A": "dep", "column_B": "arr"}),
    "expect_column_pair_values_to_be_in_set": (
        {"column_A": "bit", "column_B": "bit", "value_pairs_set": [[0, 0], [1, 1]]},
        {"column_A": "bit", "column_B": "bit", "value_pairs_set": [[0, 0]]},
    ),
    "expect_column_proportion_of_non_null_values_to_be_between": (
        {"column": "id", "min_value": 1},
        {"column": "empty", "min_value": 0.5},
    ),
    "expect_column_proportion_of_unique_values_to_be_between": (
        {"column": "id", "min_value": 1},
        {"column": "bit", "min_value": 0.5},
    ),
    "expect_column_quantile_values_to_be_between": (
        {"column": "id", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[49, 52]]}},
        {"column": "id", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[1, 2]]}},
    ),
    "expect_column_stdev_to_be_between": (
        {"column": "id", "min_value": 29, "max_value": 30},
        {"column": "id", "max_value": 1},
    ),
    "expect_column_sum_to_be_between": (
        {"column": "id", "min_value": 5050, "max_value": 5050},
        {"column": "id", "max_value": 5049},
    ),
    "expect_column_to_exist": ({"column": "id"}, {"column": "nowhere"}),
    "expect_column_type_to_be": (
        {"column": "id", "type_": "INTEGER"},
        {"column": "id", "type_": "TEXT"},
    ),
    "expect_column_unique_value_count_to_be_between": (
        {"column": "bit", "max_value": 2},
        {"column": "bit", "min_value": 3},
    ),
    "expect_column_value_lengths_to_be_between": (
        {"column": "carrier", "min_value": 2},
        {"column": "carrier", "min_value": 3},
    ),
    "expect_column_value_lengths_to_equal": (
        {"column": "carrier", "value": 2},
        {"column": "carrier", "value": 3},
    ),
    "expect_column_value_z_scores_to_be_less_than": (
        {"column": "id", "threshold": 3, "double_sided": True},
        {"column": "spiked", "threshold": 3, "double_sided": True},
    ),
    "expect_column_values_to_be_between": (
        {"column": "ratio", "min_value": 0},
        {"column": "ratio", "min_value": 1},
    ),
    "expect_column_values_to_be_in_set": (
        {"column": "day", "value_set": DAYS},
        {"column": "day", "value_set": DAYS[1:]},
    ),
    "expect_column_values_to_be_in_type_list": (
        {"column": "id", "type_list": ["INTEGER", "BIGINT"]},
        {"column": "id", "type_list": ["TEXT"]},
    ),
    "expect_column_values_to_be_null": ({"column": "empty"}, {"column": "id"}),
    "expect_column_values_to_be_of_type": (
        {"column": "carrier", "type_": "TEXT"},
        {"column": "carrier", "type_": "INTEGER"},
    ),
    "expect_column_values_to_be_unique": ({"column": "id"}, {"column": "bit"}),
    "expect_column_values_to_match_like_pattern": (
        {"column": "carrier", "like_pattern": "U%"},
        {"column": "carrier", "like_pattern": "D%"},
    ),
    "expect_column_values_to_match_like_pattern_list": (
        {"column": "carrier", "like_pattern_list": ["D%", "U_"]},
        {"column": "carrier", "like_pattern_list": ["D%"]},
    ),
    "expect_column_values_to_match_regex": (
        {"column": "carrier", "regex": "^[A-Z]{2}$"},
        {"column": "carrier", "regex": "^[a-z]"},
    ),
    "expect_column_values_to_match_regex_list": (
        {"column": "carrier", "regex_list": ["^x", "^U"]},
        {"column": "carrier", "regex_list": ["^x"]},
    ),
    "expect_column_values_to_not_be_in_set": (
        {"column": "carrier", "value_set": ["DL"]},
        {"column": "carrier", "value_set": ["UA"]},
    ),
    "expect_column_values_to_not_be_null": ({"column": "id"}, {"column": "empty"}),
    "expect_column_values_to_not_be_outliers": ({"column": "id"}, {"column": "spiked"}),
    "expect_column_values_to_not_match_like_pattern": (
        {"column": "carrier", "like_pattern": "D%"},
        {"column": "carrier", "like_pattern": "U%"},
    ),
    "expect_column_values_to_not_match_like_pattern_list": (
        {"column": "carrier", "like_pattern_list": ["D%"]},
        {"column": "carrier", "like_pattern_list": ["D%", "U%"]},
    ),
    "expect_column_values_to_not_match_regex": (
        {"column": "carrier", "regex": "^x"},
        {"column": "carrier", "regex": "^U"},
    ),
    "expect_column_values_to_not_match_regex_list": (
        {"column": "carrier", "regex_list": ["^x"]},
        {"column": "carrier", "regex_list": ["^x", "^U"]},
    ),
    "expect_compound_columns_to_be_unique": (
        {"column_list": ["id", "bit"]},
        {"column_list": ["carrier", "bit"]},
    ),
    "expect_multicolumn_sum_to_equal": (
        {"column_list": ["dep", "descending"], "sum_total": 100},
        {"column_list": ["dep", "descending"], "sum_total": 99},
    ),
    "expect_multicolumn_values_to_be_equal": (
        {"column_list": ["id", "dep", "twin"]},
        {"column_list": ["id", "dep", "arr"]},
    ),
    "expect_select_column_values_to_be_unique_within_record": (
        {"column_list": ["dep", "arr"]},
        {"column_list": ["dep", "twin"]},
    ),
    "expect_table_column_count_to_be_between": ({"max_value": 14}, {"min_value": 15}),
    "expect_table_column_count_to_equal": ({"value": 14}, {"value": 15}),
    "expect_table_columns_to_match_ordered_list": (
        {
            "column_list": [
                "id",
                "carrier",
                "empty",
                "dep",
                "arr",
                "twin",
                "bit",
                "quarter",
                "ratio",
                "real",
                "day",
                "doc",
                "descending",
                "spiked",
            ]
        },
        {"column_list": ["carrier", "id"]},
    ),
    "expect_table_columns_to_match_set": (
        {"column_set": ["carrier", "id"], "exact_match": False},
        {"column_set": ["carrier", "id"]},
    ),
    "expect_table_row_count_to_be_between": ({"min_value": 100}, {"min_value": 101}),
    "expect_table_row_count_to_equal": ({"value": 100}, {"value": 99}),
    "expect_table_row_count_to_equal_other_table": (
        {"other_table_name": "every_type_twin"},
        {"other_table_name": "every_type_half"},
    ),
    "unexpected_rows_expectation": (
        {"unexpected_rows_query": "SELECT * FROM {batch} WHERE id > 100"},
        {"unexpected_rows_query": "SELECT * FROM {batch} WHERE id > 98"},
    ),
}

# type: (kwargs, a part of the reason Great Expectations gives on PostgreSQL)
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "expect_column_values_to_be_dateutil_parseable": ({"column": "doc"}, NO_PROVIDER),
    "expect_column_values_to_be_decreasing": ({"column": "id"}, NO_PROVIDER),
    "expect_column_values_to_be_increasing": ({"column": "id"}, NO_PROVIDER),
    "expect_column_values_to_be_json_parseable": ({"column": "doc"}, NO_PROVIDER),
    "expect_column_values_to_match_json_schema": (
        {"column": "doc", "json_schema": {}},
        NO_PROVIDER,
    ),
    "expect_column_values_to_match_strftime_format": (
        {"column": "carrier", "strftime_format": "%Y"},
        NO_PROVIDER,
    ),
    "expect_query_results_to_match_comparison": (
        {
            "base_query": "SELECT 1",
            "comparison_data_source_name": "elsewhere",
            "comparison_query": "SELECT 1",
        },
        "Could not find a datasource named 'elsewhere'",
    ),
}
