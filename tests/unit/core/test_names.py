"""Names hold whatever PostgreSQL can hold, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import (
    TableName,
    check_identifier,
    check_stream,
    short_id,
    shortened,
    staging_name,
)

identifiers = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=63
).filter(lambda text: len(text.encode()) <= 63)


@given(identifiers, identifiers)
def test_a_name_reads_as_it_is_written(schema, name):
    """parse(str(name)) is the name, whatever is in it."""
    table = TableName(schema, name)
    assert TableName.parse(str(table)) == table


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("t", "public", "t"),
        ("a.t", "a", "t"),
        (" a . t ", "a", "t"),
        ('"a.b"."c""d"', "a.b", 'c"d'),
        ("A.T", "A", "T"),
        ('a."."', "a", "."),
        ('"a b".c d', "a b", "c d"),
        ('"\n"."%s"', "\n", "%s"),
        ("schéma.täble", "schéma", "täble"),
    ],
)
def test_tables_are_read_as_people_write_them(text, schema, name):
    assert TableName.parse(text) == TableName(schema, name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "a.",
        ".a",
        "a..b",
        "a.b.c",
        '"a',
        'a"b',
        '"a"b',
        '""',
        '"".a',
        'a.""',
        "a\x00.b",
    ],
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(ConfigurationError):
        TableName.parse(text)


@given(st.text(max_size=80))
def test_parsing_ends_in_a_name_or_a_clear_error(text):
    """No text makes it raise anything else, or hang."""
    try:
        table = TableName.parse(text)
    except ConfigurationError:
        return
    assert TableName.parse(str(table)) == table


@pytest.mark.parametrize("name", ["", "\x00", "a\x00", "x" * 64, "ü" * 32, "👩" * 16, "\ud800"])
def test_what_the_server_would_cut_or_refuse_is_refused(name):
    """63 bytes of UTF-8, not characters; half a surrogate pair is no text at all."""
    with pytest.raises(ConfigurationError):
        check_identifier(name)


@pytest.mark.parametrize("name", ["x" * 63, "ü" * 31 + "x", "👩" * 15 + "xyz", " ", '"'])
def test_what_the_server_can_hold_is_kept(name):
    assert check_identifier(name) == name


@pytest.mark.parametrize("stream", ["a", "0", "a-b_c.d", "a" * 100])
def test_streams_that_are_allowed(stream):
    assert check_stream(stream) == stream


@pytest.mark.parametrize(
    "stream", ["", "A", "-a", "a b", "a\n", "é", "a" * 101, None, 7, "a/b", "a:b"]
)
def test_streams_that_are_refused(stream):
    with pytest.raises(ConfigurationError):
        check_stream(stream)


@given(
    st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,99}", fullmatch=True),
    st.uuids(),
    st.integers(1, 9999),
)
def test_staging_names_need_no_quotes_and_are_unique_per_try(stream, load_id, number):
    """Rule A20: [a-z_][a-z0-9_]{0,62}; load and try are in it whole."""
    name = staging_name(stream, str(load_id), number)
    assert re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name)
    assert name.endswith(f"_{short_id(str(load_id))}_{number}")
    assert staging_name(stream, str(load_id), number + 1) != name


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=100), st.integers(0, 30))
def test_shortened_names_fit_and_differ(name, room):
    """They fit into what is left, are cut between characters, and the hash tells two long ones apart."""
    short = shortened(name, room=room)
    assert len(short.encode()) <= 63 - room
    if short != name:
        assert shortened(name + "x", room=room) != short


def test_two_loads_of_one_millisecond_differ():
    """UUIDv7 begins with its time: names take its end."""
    one, two = "01a1fb67-8db0-7a4c-be59-c2ad2c43738b", "01a1fb67-8db0-7a4c-be59-c2ad2c43738c"
    assert staging_name("s", one, 1) != staging_name("s", two, 1)
