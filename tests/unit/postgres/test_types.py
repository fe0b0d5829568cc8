"""Which pairs of types travel in binary, which as text, and which are refused."""

from __future__ import annotations

import pytest

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.ports import SourceColumn
from airflow_etl_provider.postgres.catalog import CatalogColumn
from airflow_etl_provider.postgres.types import agreement

TZ, TS = "timestamp with time zone", "timestamp without time zone"
REG = {"regclass", "regtype[]"}


def builtin(kind):
    return "." not in kind


def agree(ours, theirs, *, definitions=("", "")):
    source = SourceColumn(
        name="c",
        type=ours,
        not_null=False,
        portable=builtin(ours) and ours not in REG,
        definition=definitions[0],
    )
    target = CatalogColumn(
        name="c",
        type=theirs,
        builtin=builtin(theirs),
        refers_by_oid=theirs in REG,
        not_null=False,
        has_default=False,
        generated=False,
        identity=False,
        definition=definitions[1],
    )
    return agreement([source], [target], where="stream s")


@pytest.mark.parametrize(
    "kind",
    [
        "integer",
        "text",
        "numeric",
        "numeric(10,2)",
        "numeric(5,-2)",
        TZ,
        "timestamp(3) with time zone",
        "date",
        "jsonb",
        "integer[]",
        "numeric(10,2)[]",
        "character(3)",
        "interval",
        "interval day to second(3)",
        "bytea",
        '"char"',
        "bit varying(9)",
    ],
)
def test_the_same_builtin_type_travels_in_binary(kind):
    assert agree(kind, kind) is True


@pytest.mark.parametrize(
    "kind", ["regclass", "regtype[]", "public.mood", "public.mood[]", 'app."Odd ""type"""']
)
def test_what_is_known_by_name_or_oid_travels_as_text(kind):
    """Rule 24: OIDs mean something else on another server."""
    assert agree(kind, kind) is False


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("smallint", "integer"),
        ("smallint", "real"),
        ("integer", "bigint"),
        ("integer", "double precision"),
        ("bigint", "numeric"),
        ("numeric(10,2)", "numeric"),
        ("numeric(10,2)", "numeric(12,4)"),
        ("numeric(10)", "numeric(10,0)"),
        ("timestamp(3) without time zone", TS),
        (TS, "timestamp(6) without time zone"),
        ("timestamp(3) with time zone", "timestamp(4) with time zone"),
        ("date", TS),
        ("cidr", "inet"),
        ("integer[]", "bigint[]"),
        ("uuid", "text"),
        ("interval(3)", "interval"),
    ],
)
def test_what_widens_without_loss_travels_as_text(ours, theirs):
    assert agree(ours, theirs) is False


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("bigint", "integer"),
        ("bigint", "double precision"),
        ("integer", "real"),
        ("numeric", "numeric(10,2)"),
        ("numeric(10,3)", "numeric(10,2)"),
        ("numeric(10,2)", "numeric(10,4)"),
        ("numeric", "double precision"),
        ("numeric(10,2)", "integer"),
        ("double precision", "real"),
        ("double precision", "numeric"),
        (TS, "timestamp(3) without time zone"),
        ("timestamp(4) with time zone", "timestamp(3) with time zone"),
        (TS, TZ),
        (TZ, TS),
        (TZ, "date"),
        ("date", TZ),
        (TS, "date"),
        ("time without time zone", "time with time zone"),
        ("time without time zone", "time(0) without time zone"),
        ("interval", "interval(0)"),
        ("interval", "interval day"),
        ("character(3)", "character(5)"),
        ("character(3)", "character varying(3)"),
        ("text", "integer"),
        ("text", "date"),
        ("text", "character(3)"),
        ("character varying", "character(5)"),
        ("jsonb", "json"),
        ("integer", "boolean"),
        ("bit(3)", "bit(5)"),
        ("integer[]", "integer"),
        ("bigint[]", "integer[]"),
        (f"{TS}[]", f"{TZ}[]"),
        ("numeric[]", "numeric(10,2)[]"),
        ("public.mood", "public.humour"),
        ("public.mood", "app.mood"),
        ("uuid", "bytea"),
    ],
)
def test_what_could_round_cut_or_shift_is_refused_by_name(ours, theirs):
    with pytest.raises(ContractError) as raised:
        agree(ours, theirs)
    assert f"c: {ours} does not fit {theirs}" in str(raised.value)
    assert raised.value.remedy


def test_a_type_of_one_name_and_two_definitions_is_refused():
    """Domains that round, composites in another order: the name alone is no agreement."""
    assert agree("public.d", "public.d", definitions=("numeric", "numeric")) is False
    with pytest.raises(ContractError, match="another definition"):
        agree("public.d", "public.d", definitions=("numeric", "numeric(10,2)"))


def test_json_into_jsonb_is_refused_because_it_loses_duplicate_keys():
    """'{"a":1,"a":2}' becomes '{"a":2}' in silence."""
    with pytest.raises(ContractError):
        agree("json", "jsonb")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("character varying(5)", "character varying(9)"),
        ("character varying(9)", "character varying(5)"),
        ("character varying(5)", "text"),
        ("character varying", "text"),
    ],
)
def test_text_is_text_in_binary_whatever_its_limit(ours, theirs):
    """The limit is checked by the server that stores it."""
    assert agree(ours, theirs) is True
