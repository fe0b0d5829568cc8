"""YAML text read with its lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.config.yaml_text import Document, Place, read_yaml


def wrong(document: Document) -> list[str]:
    return [f"{place.line}: {finding}" for place, finding in document.findings]


def test_values_keep_their_lines() -> None:
    """Keys are found at the line of the key, items at the line of the item."""
    document = read_yaml("a:\n  b: 1\n  c:\n    - 2\n    - {d: 3}\n", "f.yaml")
    assert document.data == {"a": {"b": 1, "c": [2, {"d": 3}]}}
    assert document.places[("a", "c")] == Place("f.yaml", 3)
    assert document.places[("a", "c", 1, "d")] == Place("f.yaml", 5)


def test_anchors_and_merge_keys_work() -> None:
    """A mapping's own keys win over merged ones, the first merged over later ones."""
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\nd: {<<: *b}\n"
    document = read_yaml(text, "f.yaml")
    assert not document.findings
    assert document.data["c"] == {"x": 3, "y": 1, "z": 2}
    assert document.data["d"] == {"y": 2, "z": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {<<: 1}", "1: a: '<<' takes a mapping; write '<<: *name' of an anchored mapping"),
        ("? [a]\n: 1", "1: a list or mapping stands where a key is expected; "),
        ("1: a", "1: the key '1' is no text; put the key in quotes"),
        ("a: 1\nb: 2\na: 3", "3: a: stands twice; the first is in line 1; keep one of the two"),
        ("x: " + "[" * 60 + "]" * 60, "1: has more than 50 levels; write it with fewer brackets"),
        ("[" * 100_000, "1: has more than 50 levels; write it with fewer brackets"),
        ("a: \x01", "1: not readable as YAML: "),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_finding(text: str, expected: str) -> None:
    """Mistakes are values; nothing is raised."""
    assert wrong(read_yaml(text, "f.yaml"))[0].startswith(expected)


def test_a_bomb_of_aliases_is_defused() -> None:
    """Nine levels of nine aliases would be 387 million values."""
    text = 'a0: &a0 ["lol"]\n' + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    assert "has more than 100000 values" in wrong(read_yaml(text, "f.yaml"))[0]


@given(st.text())
def test_any_text_is_read_or_explained(text: str) -> None:
    """No text raises, and nothing is reported for a line that is not there."""
    document = read_yaml(text, "f.yaml")
    assert all(place.line >= 1 for place, _ in document.findings)
