"""Texts become values of the target's types; rows that would lose something on the way become dead letters.

A text fits a type if the type's input function takes it and nothing is rounded, cut or shifted in silence:
of numbers and times as many digits must be left as were there, a time says its offset exactly if the type
has a zone, and none of ``now``, ``today`` or two-digit years passes for a date.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg import sql

from airflow_etl_provider.core.conversion import Conversion, Judged
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.postgres.dead_letters import key_text, printed, written
from airflow_etl_provider.postgres.statements import ident, names, uncompressed

#: The first release whose server says whether it would take a text (``pg_input_is_valid``).
ASKS_FROM = 160000

#: Session-local, so that nothing is left behind whatever happens.
RAW_TABLE = TableName("pg_temp", "etl_raw")
RAW, BAD = ident(RAW_TABLE), sql.Identifier("pg_temp", "etl_bad")

_TYPE = re.compile(
    r"(?P<base>[^(]+?)(?:\((?P<args>-?[\d,-]+)\))?(?P<rest> with(?:out)? time zone)?(?P<array>(?:\[\])*)"
)
_DAY = r"[0-9]{4,7}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6}0*)?)?"
_OFFSET = r" ?(Z|[+-][0-9]{2}(:?[0-9]{2}(:?[0-9]{2})?)?)"
_ERA, _EVER = "( BC)?", "-?infinity"
#: How dates and times must be written, beside what their input functions take.
_FORMS = {
    "date": f"^({_DAY}{_ERA}|{_EVER})$",
    "timestamp without time zone": f"^({_DAY}([ T]{_CLOCK})?{_ERA}|{_EVER})$",
    "timestamp with time zone": f"^({_DAY}[ T]{_CLOCK}{_OFFSET}{_ERA}|{_EVER})$",
    "time without time zone": f"^({_CLOCK}|24:00:00)$",
    "time with time zone": f"^({_CLOCK}|24:00:00){_OFFSET}$",
}
#: Types that have a length even if none is written, by one that has none.
_UNBOUNDED = {"character": "bpchar", "bit": "bit varying"}
_FLOATS = ("real", "double precision")


@dataclass(frozen=True, slots=True)
class Texts:
    """The statements that turn the rows of :data:`RAW` into those of *staging*, in one transaction.

    :param remark: the column of :data:`RAW` with what the source has to say against a row, if it says anything.
    :param asks: whether the server can be asked if it would take a text.
    :param tag: a ``bigint`` column of both that goes along as it is.
    """

    conversion: Conversion
    staging: TableName
    remark: str | None
    asks: bool
    tag: str | None = None

    @classmethod
    def of(
        cls,
        conversion: Conversion,
        staging: TableName,
        server_version: int,
        *,
        tag: str | None = None,
    ) -> Texts:
        remark = None
        if conversion.remarks:
            remark = "etl_remark"
            while any(column.name == remark for column in conversion.columns):
                remark += "_"
        return cls(conversion, staging, remark, server_version >= ASKS_FROM, tag)

    @property
    def received(self) -> list[str]:
        """The columns of :data:`RAW` in the order in which the source sends them."""
        columns = [column.name for column in self.conversion.columns]
        return columns if self.remark is None else [*columns, self.remark]

    def create(self, otherwise: Sequence[str]) -> list[sql.Composed]:
        """Make :data:`RAW`, and what judges texts where the server cannot be asked.

        :param otherwise: columns that the target stores otherwise than their types say.
        """
        columns: list[sql.Composable] = [
            sql.SQL("{}::text").format(sql.Identifier(column.name))
            if column.text
            else sql.Identifier(column.name)
            for column in self.conversion.columns
        ]
        named = [
            sql.SQL("{} AS {}").format(made, sql.Identifier(column.name))
            for made, column in zip(columns, self.conversion.columns, strict=True)
        ]
        if self.remark is not None:
            named.append(sql.SQL("NULL::text AS {}").format(sql.Identifier(self.remark)))
        if self.tag is not None:
            named.append(sql.SQL("{}").format(sql.Identifier(self.tag)))
        made = [
            sql.SQL(
                "CREATE TEMP TABLE etl_raw ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
            ).format(sql.SQL(", ").join(named), ident(self.staging))
        ]
        types = {
            type_: None
            for column in self.conversion.columns
            if column.text and not self._can_ask(column)
            for type_ in (column.type, "numeric")
        }
        return [*made, *uncompressed(RAW_TABLE, otherwise), *map(_judging_function, types)]

    def judge(self) -> sql.Composed:
        """Make :data:`BAD`: the places of rows that cannot be taken, and why."""
        reasons: list[sql.Composable] = [
            sql.SQL("CASE WHEN {} THEN {} END").format(condition, sql.Literal(reason))
            for column in self.conversion.columns
            for condition, reason in self._objections(column)
        ]
        if self.remark is not None:
            reasons.append(sql.Identifier(self.remark))
        return sql.SQL(
            "CREATE TEMP TABLE etl_bad ON COMMIT DROP AS SELECT * FROM (SELECT r.ctid AS place,"
            " nullif(array_to_string(ARRAY[{}]::text[], '; '), '') AS reason FROM {} AS r) AS looked"
            " WHERE reason IS NOT NULL"
        ).format(sql.SQL(", ").join(reasons), RAW)

    def count(self) -> sql.Composed:
        """Why rows cannot be taken, with their numbers."""
        return sql.SQL("SELECT reason, count(*) FROM {} GROUP BY reason").format(BAD)

    def set_aside(
        self, stream: str, load_id: str, keys: Sequence[str], cursor: str | None
    ) -> sql.Composed:
        """Write the letters."""
        by_name = {column.name: column for column in self.conversion.columns}
        texts: dict[str, sql.Composable] = {
            column.name: sql.Identifier("r", column.name)
            if column.text
            else printed(sql.Identifier("r", column.name))
            for column in self.conversion.columns
        }
        key = key_text([self._canonical(by_name[name]) for name in keys if name in by_name])
        position: sql.Composable = sql.SQL("NULL::text")
        if cursor in by_name:
            column = by_name[cursor]
            position = sql.SQL("CASE WHEN {} THEN {} END").format(
                self._fits(column), self._canonical(column)
            )
        return written(
            stream,
            load_id,
            columns=texts,
            key=key,
            position=position,
            rows=sql.SQL("{} AS r JOIN {} AS b ON r.ctid = b.place").format(RAW, BAD),
            place=sql.SQL("b.place"),
            why={"reason": sql.SQL("b.reason")},
        )

    def drop_bad(self) -> sql.Composed:
        return sql.SQL("DELETE FROM {} AS r USING {} AS b WHERE r.ctid = b.place").format(RAW, BAD)

    def convert(self) -> sql.Composed:
        """Fill the staged table with what is left."""
        columns = self.conversion.columns
        tag = [] if self.tag is None else [self.tag]
        return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} AS r").format(
            ident(self.staging),
            names([*(column.name for column in columns), *tag]),
            sql.SQL(", ").join(
                [
                    *(self._value(column) for column in columns),
                    *(sql.Identifier("r", name) for name in tag),
                ]
            ),
            RAW,
        )

    # -- one column -------------------------------------------------------------------------------

    def _can_ask(self, column: Judged) -> bool:
        return self.asks and column.soft

    def _objections(self, column: Judged) -> list[tuple[sql.Composable, str]]:
        name = sql.Identifier("r", column.name)
        found: list[tuple[sql.Composable, str]] = []
        if column.required:
            empty = sql.SQL("num_nulls({}) = 1").format(name)
            found.append((empty, f"column {quoted(column.name)} has no value, and must have one"))
        if column.text:
            unfit = sql.SQL("NOT ({})").format(self._fits(column))
            found.append(
                (unfit, f"column {quoted(column.name)} cannot be converted to {column.type}")
            )
        return found

    def _fits(self, column: Judged) -> sql.Composable:
        """Whether a value is one of the type, exactly; NULL always is."""
        if not column.text:
            return sql.SQL("true")
        name = sql.Identifier("r", column.name)
        tests = [
            sql.SQL("WHEN {} IS NULL THEN true").format(name),
            *(
                sql.SQL("WHEN NOT ({}) THEN false").format(test)
                for test in tests_of(name, column, self._takes(column))
            ),
        ]
        return sql.SQL("CASE {} ELSE true END").format(sql.SQL(" ").join(tests))

    def _takes(self, column: Judged) -> Callable[[str], sql.Composable]:
        """Makes the question whether an input function takes the column's text for a type."""
        name = sql.Identifier("r", column.name)

        def takes(type_: str) -> sql.Composable:
            if self._can_ask(column):
                return sql.SQL("pg_input_is_valid({}, {})").format(name, sql.Literal(type_))
            return sql.SQL("{}({})").format(_function_name(type_), name)

        return takes

    def _value(self, column: Judged) -> sql.Composable:
        name = sql.Identifier("r", column.name)
        return sql.SQL("{}::{}").format(name, _bare(column.stored)) if column.text else name

    def _canonical(self, column: Judged) -> sql.Composable:
        """The value as the target will print it, or the text that it cannot take."""
        name = sql.Identifier("r", column.name)
        if not column.text:
            return printed(name)
        exact = sql.SQL("({})::{}").format(self._value(column), sql.SQL(column.type))
        return sql.SQL("CASE WHEN {} THEN {} ELSE {} END").format(
            self._fits(column), printed(exact), name
        )


def tests_of(
    text: sql.Composable, column: Judged, takes: Callable[[str], sql.Composable]
) -> list[sql.Composable]:
    """What must hold one after the other, so that *text* is a value of the column and nothing is lost."""
    match = _TYPE.fullmatch(column.stored)
    base = column.stored if match is None else match["base"] + (match["rest"] or "")
    is_array = match is not None and bool(match["array"])
    tests: list[sql.Composable] = []
    if base in _FORMS and not is_array:
        tests.append(sql.SQL("{} ~ {}").format(text, sql.Literal(_FORMS[base])))
    tests.append(takes(column.type))
    if base in _FLOATS and not is_array:
        tests.append(takes("numeric"))
        tests.append(
            # The shortest text that means the same number is the one that was meant.
            sql.SQL("{t}::{f}::text::numeric = {t}::numeric").format(t=text, f=_bare(column.stored))
        )
    elif base.startswith("interval ") or (
        match is not None and match["args"] and base in (*_FORMS, "numeric", "interval")
    ):
        wide = sql.SQL("{}::{}").format(text, _bare(column.stored))
        tests.append(
            sql.SQL("{w} IS NOT DISTINCT FROM ({w})::{t}").format(w=wide, t=sql.SQL(column.stored))
        )
    return tests


def _bare(type_: str) -> sql.SQL:
    """A type without its modifiers, which an assignment applies: a cast would cut what is too long.

    *type_* is the server's own rendering.
    """
    match = _TYPE.fullmatch(type_)
    if match is None:
        return sql.SQL(type_)
    base = match["base"] + (match["rest"] or "")
    if base.startswith("interval "):
        base = "interval"
    return sql.SQL(_UNBOUNDED.get(base, base) + match["array"])


def _function_name(type_: str) -> sql.Identifier:
    return sql.Identifier(
        "pg_temp", f"etl_takes_{hashlib.blake2s(type_.encode(), digest_size=8).hexdigest()}"
    )


def _judging_function(type_: str) -> sql.Composed:
    """A function that assigns a text to a variable of the type, where the server cannot be asked.

    An assignment goes through the type's input function with its modifiers; what stops it for want of
    memory, disk or time says nothing about the text.
    """
    body = sql.SQL(
        "DECLARE v {}; BEGIN v := value; RETURN true; EXCEPTION WHEN OTHERS THEN"
        " IF left(SQLSTATE, 2) IN ('40', '53', '57', '58') THEN RAISE; END IF; RETURN false; END"
    ).format(sql.SQL(type_))
    return sql.SQL(
        "CREATE OR REPLACE FUNCTION {} (value text) RETURNS boolean LANGUAGE plpgsql AS {}"
    ).format(_function_name(type_), sql.Literal(body.as_string(None)))
