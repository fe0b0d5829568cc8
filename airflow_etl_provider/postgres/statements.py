"""Statements whose shape varies; pure functions of names, rendered without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from psycopg import sql

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.load import PartitionRange
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Slice
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.postgres.cursors import plain_type

STAGING_SCHEMA = "etl_staging"
BOUND_CHECK = "etl_partition_bound"
#: Settings that hold the two pads of a hash's key.
HASH_INNER, HASH_OUTER = "etl.hash_inner", "etl.hash_outer"
#: Equal for two looks at a table ``t`` between which no row was written: places and writers of all rows.
FINGERPRINT = sql.SQL(
    "count(*) || ' ' || coalesce(bit_xor(hashtidextended(t.ctid, t.xmin::text::int8)), 0)"
)


def ident(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column) for column in columns)


def qualified(alias: str, columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(alias, column) for column in columns)


def in_range(
    column: str, low: str | None, high: str | None, *, bounds: str = "[)", collate: bool = False
) -> sql.Composed:
    """``column >= low AND column < high`` (as *bounds* say); the literals take the column's type."""
    name: sql.Composable = sql.Identifier(column)
    if collate:
        name = sql.SQL('{} COLLATE "C"').format(name)
    parts = [
        sql.SQL("{} {} {}").format(name, sql.SQL(operator), sql.Literal(bound))
        for operator, bound in (
            (">=" if bounds[0] == "[" else ">", low),
            ("<" if bounds[1] == ")" else "<=", high),
        )
        if bound is not None
    ]
    return sql.SQL(" AND ").join(parts) if parts else sql.Composed([sql.SQL("true")])


def in_window(column: str, window: Window) -> sql.Composed:
    """Whether a row lies in *window*; text is ordered by its bytes, whatever the collation."""
    empty = sql.SQL("{} IS NULL").format(sql.Identifier(column))
    if window.nulls is Nulls.ONLY:
        return empty
    collate = plain_type(window.type or "") in ("text", "character varying")
    found = in_range(column, window.low, window.high, bounds=window.bounds, collate=collate)
    if window.nulls is Nulls.INCLUDE:
        return sql.SQL("({} OR {})").format(found, empty)
    if window.low is None and window.high is None:
        return sql.SQL("{} IS NOT NULL").format(sql.Identifier(column))
    return found


def outside(column: str, windows: Sequence[Window]) -> sql.Composed:
    """Whether a row lies in none of *windows*."""
    return sql.SQL(" AND ").join(
        [
            sql.SQL("true"),
            *(sql.SQL("({}) IS NOT TRUE").format(in_window(column, window)) for window in windows),
        ]
    )


def in_slice(part: Slice) -> sql.Composed:
    """Whether a row lies in *part*; one without a value belongs to the slice without a low end."""
    by = sql.SQL(", ").join(sql.Identifier(column) for column in part.by)

    def compared(operator: str, bound: Sequence[str]) -> sql.Composed:
        values = sql.SQL(", ").join(sql.Literal(value) for value in bound)
        return sql.SQL("({}) {} ({})").format(by, sql.SQL(operator), values)

    if part.high is None:
        return sql.Composed([sql.SQL("true")]) if part.low is None else compared(">=", part.low)
    if part.low is None:
        return sql.SQL("({} OR {} IS NULL)").format(
            compared("<", part.high), sql.Identifier(part.by[0])
        )
    return sql.SQL("{} AND {}").format(compared(">=", part.low), compared("<", part.high))


def expression(column: Selected, *, as_text: bool = False) -> sql.Composable:
    """What the source sends for *column*; with *as_text* the text of that.

    A hash is the HMAC-SHA-256 (RFC 2104) of the value's text, in hexadecimal. The two pads of its key are
    settings of the session, so that no statement shows them.
    """
    name = sql.Identifier(column.source)
    made: sql.Composable = name
    match column.treatment:
        case Treatment.NULL:
            # NULL of the column's own type, so that both sides still agree on it.
            made = sql.SQL("CASE WHEN false THEN {} END").format(name)
        case Treatment.HASH:
            made = sql.SQL(
                "pg_catalog.encode(pg_catalog.sha256({outer} OPERATOR(pg_catalog.||)"
                " pg_catalog.sha256({inner} OPERATOR(pg_catalog.||) pg_catalog.convert_to({name}::text, 'UTF8'))), 'hex')"
            ).format(name=name, outer=_pad(HASH_OUTER), inner=_pad(HASH_INNER))
        case _ if column.name == column.source and not as_text:
            return name
    if as_text:
        made = sql.SQL("({})::text").format(made)
    return sql.SQL("{} AS {}").format(made, sql.Identifier(column.name))


def _pad(setting: str) -> sql.Composed:
    return sql.SQL("pg_catalog.decode(pg_catalog.current_setting({}), 'hex')").format(
        sql.Literal(setting)
    )


def selection(
    rows: sql.Composable,
    columns: Sequence[Selected],
    cursor: str | None,
    window: Window,
    part: Slice | None,
    as_text: Collection[str] = (),
) -> sql.Composed:
    """The rows of *window* (and of *part* of it) among *rows*, as they are sent."""
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(
            expression(column, as_text=column.name in as_text) for column in columns
        ),
        rows,
    )
    conditions: list[sql.Composable] = []
    if not window.is_full and cursor is not None:
        conditions.append(in_window(cursor, window))
    if part is not None:
        conditions.append(in_slice(part))
    if not conditions:
        return query
    return query + sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions)


def largest(rows: sql.Composable, column: str, column_type: str) -> sql.Composed:
    """The largest finite value of a cursor, as text; text is ordered by its bytes."""
    plain = plain_type(column_type)
    finite = "AND {c} < 'Infinity'" if plain == "numeric" else ""
    order = ' COLLATE "C"' if plain in ("text", "character varying") else ""
    return sql.SQL(
        # Under another name, or the order would be that of the text.
        "SELECT {c}::text AS etl_largest FROM {t} WHERE {c} IS NOT NULL {finite} ORDER BY {c}{order} DESC LIMIT 1"
    ).format(
        c=sql.Identifier(column),
        t=rows,
        finite=sql.SQL(finite).format(c=sql.Identifier(column)),
        order=sql.SQL(order),
    )


def explain(query: sql.Composable) -> sql.Composed:
    return sql.SQL("EXPLAIN (FORMAT JSON) {}").format(query)


def checksum(rows: sql.Composable, columns: Sequence[str]) -> sql.Composed:
    """Order-independent: the sum of a 64-bit hash of each row's text. Costs about one more scan."""
    return sql.SQL(
        "SELECT coalesce(sum(hashtextextended(ROW({})::text, 0)::numeric), 0)::text FROM {} AS batch"
    ).format(qualified("batch", columns), rows)


def copy_out(query: sql.Composable, *, binary: bool) -> sql.Composed:
    return sql.SQL("COPY ({}) TO STDOUT (FORMAT {})").format(query, _format(binary))


def copy_in(
    table: TableName, columns: Sequence[str], *, binary: bool, freeze: bool
) -> sql.Composed:
    options = [sql.SQL("FORMAT ") + _format(binary)]
    if freeze:
        options.append(sql.SQL(" ").join([sql.SQL("FREEZE"), sql.SQL("true")]))
    return sql.SQL("COPY {} ({}) FROM STDIN ({})").format(
        ident(table), names(columns), sql.SQL(", ").join(options)
    )


def copy_in_csv(table: TableName, columns: Sequence[str]) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv, FREEZE true)").format(
        ident(table), names(columns)
    )


def _format(binary: bool) -> sql.SQL:
    return sql.SQL("binary") if binary else sql.SQL("text")


def create_twin(table: TableName, parent: TableName, tablespace: str | None) -> sql.Composed:
    """A future partition: the parent's columns with all that belongs to them, indexes and keys aside.

    Identity is left out because ATTACH brings it, statistics objects because a partition has only its own; autovacuum stays away until the table is attached.

    :param tablespace: where it is kept; ``None`` for the database's own.
    """
    return sql.SQL(
        "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY EXCLUDING STATISTICS)"
        " WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off){}"
    ).format(ident(table), ident(parent), _kept_in(tablespace))


def create_partition(
    table: TableName,
    parent: TableName,
    tablespace: str | None,
    *,
    by: sql.Composable | None = None,
) -> sql.Composed:
    """An empty table that can be attached to *parent*; ATTACH gives it the indexes and keys.

    :param by: how it is partitioned itself, if it is.
    """
    return sql.SQL(
        "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY EXCLUDING STATISTICS){}{}"
    ).format(
        ident(table),
        ident(parent),
        sql.SQL("" if by is None else " PARTITION BY {}").format(by),
        _kept_in(tablespace),
    )


def _kept_in(tablespace: str | None) -> sql.Composed:
    if tablespace is None:
        return sql.Composed([])
    return sql.SQL(" TABLESPACE {}").format(sql.Identifier(tablespace))


def create_staging(
    table: TableName, target: TableName, columns: Sequence[str], *, logged: bool = True
) -> sql.Composed:
    """A table of its own, typed like the target's columns."""
    return sql.SQL(
        "CREATE {} TABLE {} WITH (autovacuum_enabled = off) AS SELECT {} FROM {} WITH NO DATA"
    ).format(sql.SQL("" if logged else "UNLOGGED"), ident(table), names(columns), ident(target))


def create_typed(
    table: TableName, columns: Sequence[tuple[str, str]], *, logged: bool = True
) -> sql.Composed:
    """A table of its own; the types are the server's own rendering."""
    return sql.SQL("CREATE {} TABLE {} ({}) WITH (autovacuum_enabled = off)").format(
        sql.SQL("" if logged else "UNLOGGED"),
        ident(table),
        sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_)) for name, type_ in columns
        ),
    )


def uncompressed(table: TableName, columns: Sequence[str]) -> list[sql.Composed]:
    """Let the table into which the rows are copied decide how it stores values: compressed ones it takes as they are."""
    return [
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STORAGE EXTERNAL").format(
            ident(table), sql.Identifier(column)
        )
        for column in columns
    ]


def comment(table: TableName, text: str) -> sql.Composed:
    return sql.SQL("COMMENT ON TABLE {} IS {}").format(ident(table), sql.Literal(text))


def holds(column: str, partition: PartitionRange) -> sql.Composed:
    """Which rows belong into a partition by RANGE, as its bound says it."""
    return sql.SQL("{} IS NOT NULL AND {}").format(
        sql.Identifier(column), in_range(column, partition.low, partition.high)
    )


def bound_check(table: TableName, condition: sql.Composable) -> sql.Composed:
    """The CHECK that lets ATTACH skip its scan: it says what the partition's bound says."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({})").format(
        ident(table), sql.Identifier(BOUND_CHECK), condition
    )


def excluding_name(partition: PartitionRange) -> str:
    """The name of the constraint that keeps *partition*'s rows out of DEFAULT, the same for the same bounds."""
    return excluding_name_of(f"{partition.low} {partition.high}")


def excluding_name_of(bound: str) -> str:
    return f"etl_not_{hashlib.blake2s(bound.encode(), digest_size=8).hexdigest()}"


def excluding_check(table: TableName, name: str, condition: sql.Composable) -> sql.Composed:
    """The CHECK that says of DEFAULT that it holds no such row."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK (NOT ({})) NOT VALID").format(
        ident(table), sql.Identifier(name), condition
    )


def validate_constraint(table: TableName, name: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
        ident(table), sql.Identifier(name)
    )


def drop_constraint(table: TableName, name: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(ident(table), sql.Identifier(name))


def drop_column(table: TableName, name: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(ident(table), sql.Identifier(name))


def range_clause(partition: PartitionRange) -> sql.Composed:
    """What ATTACH says of a partition by RANGE."""
    return sql.SQL("FOR VALUES FROM ({}) TO ({})").format(
        sql.Literal(partition.low), sql.Literal(partition.high)
    )


def attach(parent: TableName, child: TableName, partition: PartitionRange) -> sql.Composed:
    return attach_as(parent, child, range_clause(partition))


def attach_as(parent: TableName, child: TableName, clause: sql.Composable) -> sql.Composed:
    """*clause* is ``FOR VALUES …`` or ``DEFAULT``."""
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
        ident(parent), ident(child), clause
    )


def detach(parent: TableName, child: TableName) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(ident(parent), ident(child))


def give(table: TableName, owner: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} OWNER TO {}").format(ident(table), sql.Identifier(owner))


def move(table: TableName, to: TableName, *, kind: str = "TABLE") -> list[sql.Composed]:
    """Give *table* a new name in another schema; its indexes go with it.

    Its row types go with it too. They are called after it, cut, so that those of partitions with long names
    would meet in the other schema: it goes there under whichever name is the staging schema's, which is unique.

    :param kind: ``STATISTICS`` for such an object, which has no row types but names of its own just so.
    """
    leaves = to.schema == STAGING_SCHEMA
    on_the_way = to.name if leaves else table.name
    rename = sql.SQL("ALTER {} {} RENAME TO {}").format(
        sql.SQL(kind),
        sql.Identifier(table.schema if leaves else to.schema, table.name),
        sql.Identifier(to.name),
    )
    change = sql.SQL("ALTER {} {} SET SCHEMA {}").format(
        sql.SQL(kind), sql.Identifier(table.schema, on_the_way), sql.Identifier(to.schema)
    )
    steps = [rename] if table.name != to.name else []
    moves = [change] if table.schema != to.schema else []
    return steps + moves if leaves else moves + steps


def rename_index(schema: str, old: str, new: str, *, if_there: bool = False) -> sql.Composed:
    return sql.SQL("ALTER INDEX {}{} RENAME TO {}").format(
        sql.SQL("IF EXISTS " if if_there else ""), sql.Identifier(schema, old), sql.Identifier(new)
    )


def lock(table: TableName, mode: str) -> sql.Composed:
    """*mode* is one of PostgreSQL's lock modes, written in this package."""
    return sql.SQL("LOCK TABLE ONLY {} IN {} MODE").format(ident(table), sql.SQL(mode))


def lock_all(tables: Sequence[TableName], mode: str) -> sql.Composed:
    """One statement for locks that are taken in this order: one journey to the server, however many."""
    return sql.SQL("LOCK TABLE {} IN {} MODE").format(
        sql.SQL(", ").join(sql.SQL("ONLY {}").format(ident(table)) for table in tables),
        sql.SQL(mode),
    )


def count(table: TableName) -> sql.Composed:
    return sql.SQL("SELECT count(*) FROM {}").format(ident(table))


def fingerprint(table: TableName) -> sql.Composed:
    return sql.SQL("SELECT {} FROM {} AS t").format(FINGERPRINT, ident(table))


def script(steps: Sequence[sql.Composable]) -> sql.Composed:
    """Several statements in one message to the server."""
    return sql.SQL(";\n").join(steps)
