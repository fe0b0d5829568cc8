"""Which partitions of a target a window means, held against those that exist."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, EtlError
from airflow_etl_provider.core.habit import Example, Habit
from airflow_etl_provider.core.load import Manifest, PartitionRange
from airflow_etl_provider.core.names import TableName, quoted, shortened
from airflow_etl_provider.core.partition import PartitionSpec, Period
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.core.window import Interval, bound_text
from airflow_etl_provider.postgres import locking, statements
from airflow_etl_provider.postgres.catalog import (
    Partition,
    Relation,
    Table,
    missing_privileges,
    read_partitions,
    scalar,
)
from airflow_etl_provider.postgres.cursors import CursorKind, cursor_kind, cursor_type_sql
from airflow_etl_provider.postgres.keyed import lives
from airflow_etl_provider.postgres.leaves import condition_of, partition_columns
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.tree import Branch, read_tree
from airflow_etl_provider.postgres.twin import Parent, like_sibling, problems, tablespace_of

#: Releases before 14.14, 15.9, 16.5 and 17.1 could lose the triggers of foreign keys with DETACH.
_LOSES_FOREIGN_KEYS = frozenset(
    major * 10000 + minor
    for major, mended in ((14, 14), (15, 9), (16, 5), (17, 1))
    for minor in range(mended)
)

#: From the one up to the other, a year and the next one lie within the years 1 to 9999 of UTC, whatever the time zone.
_FIRST, _LAST = "0002-01-01", "9997-01-01"

#: What is met by whoever makes a table that another session has made, or makes at this moment; and by whoever meets a
#: table or type of that name which has nothing to do with it.
_NAME_TAKEN = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
)


def expected_partitions(
    connection: psycopg.Connection[Any],
    target: Table,
    *,
    spec: PartitionSpec | None,
    interval: Interval,
    timezone: str,
) -> tuple[PartitionRange, ...]:
    """The partitions that *interval* covers, existing or still to be made; none unless it covers them whole,
    and each is one table.

    :raises ConfigurationError: a partition is missing and *spec* does not say how long one is.
    :raises CatalogError: existing partitions are cut differently from *spec*.
    """
    column = target.column(target.partition_columns[0], use="the partition column")
    existing = read_partitions(connection, target)
    if spec is not None:
        if not spec.covers_whole(interval.start, interval.end):
            return ()
        habit = naming(connection, target, spec, existing, column.type)
        wanted = [
            range_for(habit, spec, period, column.type)
            for period in spec.periods(interval.start, interval.end)
        ]
    else:
        whole = PartitionRange(
            "",
            bound_text(interval.start, column.type, timezone),
            bound_text(interval.end, column.type, timezone),
        )
        there = overlapping(connection, existing, whole, column.type)
        if there and not same_range(connection, there[0], whole, column.type):
            return ()
        wanted = [whole]
    found = []
    for part in wanted:
        name = _existing_name(connection, target, part, existing, column.type)
        if name is None:
            return ()
        found.append(PartitionRange(name, part.low, part.high))
    named = {one.table for one in existing}
    if any(TableName(target.name.schema, part.name) not in named for part in found):
        return () if no_single_table(connection, target) else tuple(found)
    return tuple(found)


def make_missing_partitions(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    options: PublishOptions,
    *,
    stop: Stop,
    log: EventLog,
) -> list[TableName]:
    """Attach an empty partition for every staged row that has none; returns those made.

    Also where the target is partitioned by something else, and its partitions by time. Rows at the ends of the calendar
    or beyond, as ``9999-12-31`` for never, are left to DEFAULT; rows that only take one away need no place. A parallel
    load that makes the same partition first is no failure.

    :raises CatalogError: the DEFAULT partition holds rows of one, or its name is taken; or its siblings are cut further
        by the same column.
    :raises LockBudgetExceeded: readers of the DEFAULT partition, or of what foreign keys refer to, held it up to
        the deadline.
    """
    spec = manifest.partition
    if spec is None or target.partition_strategy is None:
        return []
    made: list[TableName] = []
    routed = partition_columns(connection, target)
    columns = {column.name for column in manifest.columns}
    for place in read_tree(connection, target).first_ranges_of(spec.column):
        if place.oid == target.oid or (routed is not None and routed <= columns):
            made += _make_missing(
                connection, manifest, target, place, spec, options, stop=stop, log=log
            )
    return made


def _make_missing(
    connection: psycopg.Connection[Any],
    manifest: Manifest,
    target: Table,
    place: Branch,
    spec: PartitionSpec,
    options: PublishOptions,
    *,
    stop: Stop,
    log: EventLog,
) -> list[TableName]:
    """Of *place*, which is the target or a partition of it."""
    column_type = target.column(spec.column, use="the partition column").type
    zoned = column_type.endswith("with time zone")
    starts = connection.execute(
        sql.SQL(
            "SELECT DISTINCT date_trunc({every}, {column}{zone}){back} FROM {staging} AS s"
            " WHERE {column} >= {first} AND {column} < {last} AND {lives} AND {here}"
        ).format(
            every=sql.Literal(spec.every.value),
            column=sql.Identifier(spec.column),
            zone=sql.SQL(", {}").format(sql.Literal(spec.timezone))
            if zoned
            else sql.SQL("::timestamp"),
            back=sql.SQL("")
            if zoned
            else sql.SQL(" AT TIME ZONE {}").format(sql.Literal(spec.timezone)),
            first=sql.Literal(_FIRST),
            last=sql.Literal(_LAST),
            staging=statements.ident(manifest.staging),
            lives=lives(manifest, options),
            here=condition_of(connection, place),
        )
    ).fetchall()
    made = []
    existing = read_partitions(connection, place)
    habit = naming(connection, place, spec, existing, column_type)
    sibling = sibling_of(connection, place, column_type)
    for (start,) in sorted(starts):
        (period,) = spec.periods(start, start + timedelta(microseconds=1))
        part = range_for(habit, spec, period, column_type)
        if holding(connection, place, part, column_type):
            continue
        name = TableName(place.name.schema, part.name)
        if sibling is not None and any(sibling.ranges_of(spec.column)):
            raise _cut_further(connection, place, name, part, sibling)
        refuse_uncreatable(connection, name, place.oid)
        in_attempts = locking.patiently(
            connection, place, options, what=f"making partition {name}", stop=stop, log=log
        )
        try:
            exclude_from_default(
                connection,
                place,
                spec.column,
                [part],
                lock_timeout_ms=round(options.lock_budget.total_seconds() * 1000),
                in_attempts=in_attempts,
            )
            refuse_taken(connection, name, place)
            is_made = attach_empty(
                connection,
                place,
                name,
                part,
                create_like(connection, name, place, sibling),
                column_type,
                lock_budget=options.lock_budget,
                in_attempts=in_attempts,
            )
        except (EtlError, psycopg.Error):
            # Without the partition its rows shall go to DEFAULT as before.
            let_into_default(connection, place, statements.excluding_name(part), log=log)
            raise
        if is_made:
            made.append(name)
    return made


def _cut_further(
    connection: psycopg.Connection[Any],
    place: Branch,
    name: TableName,
    part: PartitionRange,
    sibling: Branch,
) -> CatalogError:
    by = _key_of(connection, sibling)
    statement = sql.SQL("CREATE TABLE {} PARTITION OF {} {} PARTITION BY {}").format(
        statements.ident(name), statements.ident(place.name), statements.range_clause(part), by
    )
    return CatalogError(
        f"{place.name} has no partition for {part.low} to {part.high}, and how to cut a new one is not clear: "
        f"{sibling.name}, its newest, has partitions by {place.column} below it "
        f"(it is partitioned by {by.as_string(connection)})",
        remedy=f"make it by hand with the partitions below it, then clear the task: {statement.as_string(connection)}",
    )


def create_like(
    connection: psycopg.Connection[Any], name: TableName, parent: Relation, sibling: Branch | None
) -> list[sql.Composed]:
    """The statements for an empty table that can be attached to *parent*, like *sibling* if there is one.

    With all that is partitioned below that, by the same bounds. Those hold for any time: of a table that goes by the
    same column further down nothing can be made so.
    """
    tablespace = tablespace_of(connection, parent.oid)
    if sibling is None:
        return [statements.create_partition(name, parent.name, tablespace)]
    if sibling.strategy is None:
        tablespace = tablespace or tablespace_of(connection, sibling.oid)
        return [
            statements.create_partition(name, parent.name, tablespace),
            *like_sibling(connection, name, parent.oid, sibling.partition),
        ]
    steps: list[sql.Composed] = [
        statements.create_partition(
            name,
            parent.name,
            tablespace_of(connection, sibling.oid),
            by=_key_of(connection, sibling),
        )
    ]
    for number, below in enumerate(sibling.below):
        suffix = below.name.name.removeprefix(sibling.name.name)
        if suffix == below.name.name:
            suffix = f"_{number}"
        child = TableName(name.schema, shortened(f"{name.name}{suffix}"))
        steps += create_like(connection, child, Parent(name, sibling.oid), below)
        steps.append(statements.attach_as(name, child, sql.SQL(below.bound or "DEFAULT")))
    return steps


def _key_of(connection: psycopg.Connection[Any], branch: Branch) -> sql.SQL:
    """By what it is partitioned, in the server's own rendering."""
    return sql.SQL(scalar(connection, queries("retention")["partition_key"], {"oid": branch.oid}))


def attach_empty(
    connection: psycopg.Connection[Any],
    parent: Relation,
    name: TableName,
    part: PartitionRange,
    create: Sequence[sql.Composed],
    column_type: str,
    *,
    lock_budget: timedelta,
    in_attempts: locking.Attempts = locking.once,
) -> bool:
    """Run *create*, which makes the empty table *name* and what hangs on it, and attach that.

    Never ``PARTITION OF``, which would lock out every reader of the parent.

    :returns: ``False``: another was first, and *part* has a partition by now, maybe of another cut.
    :raises CatalogError: something else has the name of one of these tables; nothing was made.
    """

    def make(_: int) -> None:
        with connection.transaction():
            # Whoever makes the same one at the same time is waited for as long, too.
            locking.limit(connection, time.monotonic() + lock_budget.total_seconds())
            for step in create:
                connection.execute(step)
            owner = scalar(connection, queries("catalog")["owner"], {"oid": parent.oid})
            if owner is not None:
                made = connection.execute(
                    queries("leaves")["below"], {"schema": name.schema, "name": name.name}
                ).fetchall()
                for table in made:
                    connection.execute(statements.give(TableName(*table), owner))
            # One statement takes all locks (parent, DEFAULT, what foreign keys refer to) and does its work.
            connection.execute(statements.attach(parent.name, name, part))

    try:
        in_attempts(make)
    except (*_NAME_TAKEN, psycopg.errors.InvalidObjectDefinition) as error:
        met = error
    else:
        return True
    if holding(connection, parent, part, column_type):
        return False
    if not _is_name(met):
        raise met
    raise CatalogError(
        f"partition {name} of {parent.name} cannot be made: {met.diag.message_primary}",
        remedy=f"rename or drop what has that name in schema {name.schema} and is no part of {parent.name}, "
        "then try again",
    )


def _is_name(error: psycopg.Error) -> bool:
    """Whether a name was taken; of the unique indexes only the catalog's own speak of names."""
    return isinstance(error, _NAME_TAKEN) and (
        not isinstance(error, psycopg.errors.UniqueViolation)
        or error.diag.schema_name == "pg_catalog"
    )


def youngest(
    connection: psycopg.Connection[Any], partitions: Sequence[Partition], column_type: str
) -> Partition | None:
    """The partition of the highest range that has a beginning, which a new one shall resemble."""
    known = [one for one in partitions if one.low is not None]
    if not known:
        return None
    found = scalar(
        connection,
        sql.SQL(
            "SELECT oid FROM unnest(%(oids)s::bigint[], %(lows)s::text[]) AS p (oid, low)"
            " ORDER BY low::{t} DESC LIMIT 1"
        ).format(t=cursor_type_sql(column_type)),
        {"oids": [one.oid for one in known], "lows": [one.low for one in known]},
    )
    return next(one for one in known if one.oid == found)


def sibling_of(
    connection: psycopg.Connection[Any], place: Branch, column_type: str
) -> Branch | None:
    """The newest partition of *place*, which a new one shall resemble; a foreign table is nothing to go by."""
    tables = {one.oid for one in read_partitions(connection, place) if one.is_leaf}
    known = [one for one in place.below if one.strategy is not None or one.oid in tables]
    newest = youngest(connection, [one.partition for one in known], column_type)
    return next((one for one in known if newest is not None and one.oid == newest.oid), None)


def no_single_table(connection: psycopg.Connection[Any], target: Table) -> CatalogError | None:
    """Why no table can become a new partition of *target*: the newest one is partitioned itself."""
    column = target.column(target.partition_columns[0], use="the partition column")
    sibling = sibling_of(connection, read_tree(connection, target), column.type)
    if sibling is None or sibling.strategy is None:
        return None
    by = _key_of(connection, sibling).as_string(connection)
    return CatalogError(
        f"a new partition of {target.name} is made like {sibling.name}, its newest one, which is partitioned itself "
        f"by {by}: no single table can be swapped in there",
        remedy="publish with strategy='auto' or 'delete_insert', which make it with all its partitions and write in "
        "place",
    )


def naming(
    connection: psycopg.Connection[Any],
    parent: Relation,
    spec: PartitionSpec,
    existing: Sequence[Partition],
    column_type: str,
) -> Habit:
    """How partitions of *parent* are called, as those are that hold one period each."""
    starts = [(p.table.name, p.low) for p in existing if p.low is not None]
    if cursor_kind(column_type) is not CursorKind.TIME or not starts:
        return Habit(spec, parent.name.name)
    zoned = column_type.endswith("with time zone")
    rows = connection.execute(
        sql.SQL(
            "SELECT name, start FROM (SELECT name, {} AS start"
            " FROM unnest(%(names)s::text[], %(lows)s::text[]) AS given (name, low)) AS read"
            " WHERE isfinite(start) AND start > '0001-01-02Z' AND start < '9999-12-30Z'"
        ).format(sql.SQL("low::timestamptz" if zoned else "low::timestamp AT TIME ZONE %(zone)s")),
        {
            "names": [name for name, _ in starts],
            "lows": [low for _, low in starts],
            "zone": spec.timezone,
        },
    ).fetchall()
    return Habit.of(
        spec,
        parent.name.name,
        [Example(name, start) for name, start in rows if spec.period_holding(start).start == start],
    )


def range_for(
    habit: Habit, spec: PartitionSpec, period: Period, column_type: str
) -> PartitionRange:
    """The partition of *period*, as it exists or is to be made."""
    return PartitionRange(
        habit.name(period),
        bound_text(period.start, column_type, spec.timezone),
        bound_text(period.end, column_type, spec.timezone),
    )


def overlapping(
    connection: psycopg.Connection[Any],
    existing: Sequence[Partition],
    wanted: PartitionRange,
    column_type: str,
) -> list[Partition]:
    """Those of *existing* that would hold a row of *wanted*; DEFAULT does not count."""
    ranges = [partition for partition in existing if not partition.is_default]
    rows = connection.execute(
        sql.SQL(
            "SELECT place FROM unnest(%(lows)s::text[], %(highs)s::text[]) WITH ORDINALITY AS p (low, high, place)"
            " WHERE coalesce(low::{t} < %(wanted_high)s::{t}, true)"
            " AND coalesce(high::{t} > %(wanted_low)s::{t}, true) ORDER BY place"
        ).format(t=cursor_type_sql(column_type)),
        {
            "lows": [partition.low for partition in ranges],
            "highs": [partition.high for partition in ranges],
            "wanted_low": wanted.low,
            "wanted_high": wanted.high,
        },
    )
    return [ranges[place - 1] for (place,) in rows]


def holding(
    connection: psycopg.Connection[Any], parent: Relation, part: PartitionRange, column_type: str
) -> list[Partition]:
    """The partitions that would hold rows of *part*; without any, its name is free.

    :raises CatalogError: something else has its name.
    """
    found = overlapping(connection, read_partitions(connection, parent), part, column_type)
    if found:
        return found
    try:
        refuse_taken(connection, TableName(parent.name.schema, part.name), parent)
    except CatalogError:
        # Unless that is the partition itself, which a parallel load has made between both looks.
        found = overlapping(connection, read_partitions(connection, parent), part, column_type)
        if not found:
            raise
    return found


def _existing_name(
    connection: psycopg.Connection[Any],
    target: Table,
    wanted: PartitionRange,
    existing: Sequence[Partition],
    column_type: str,
) -> str | None:
    """The name of the partition with exactly the wanted bounds, or the name to make it under.

    ``None`` where it is no table that could be exchanged: partitioned itself, or in another schema.
    """
    found = overlapping(connection, existing, wanted, column_type)
    if not found:
        if not wanted.name:
            raise ConfigurationError(
                f"{target.name} has no partition for {wanted.low} to {wanted.high}",
                remedy="say how long a partition is, so that missing ones can be made: "
                "partition={'column': ..., 'every': 'month', 'timezone': ...}",
            )
        refuse_taken(connection, TableName(target.name.schema, wanted.name), target)
        return wanted.name
    (first, *rest) = found
    if rest or not same_range(connection, first, wanted, column_type):
        bounds = "; ".join(f"{p.table} {p.bound}" for p in found)
        raise CatalogError(
            f"{target.name} is cut differently from the wanted partition {wanted.low} to {wanted.high}: {bounds}",
            remedy="let partition.every and partition.timezone say how the table is really partitioned",
        )
    if not first.is_leaf or first.table.schema != target.name.schema:
        return None
    return first.table.name


def same_range(
    connection: psycopg.Connection[Any],
    partition: Partition,
    wanted: PartitionRange,
    column_type: str,
) -> bool:
    found: bool = scalar(
        connection,
        sql.SQL(
            "SELECT %(low)s::{t} IS NOT DISTINCT FROM %(wanted_low)s::{t}"
            " AND %(high)s::{t} IS NOT DISTINCT FROM %(wanted_high)s::{t}"
        ).format(t=cursor_type_sql(column_type)),
        {
            "low": partition.low,
            "high": partition.high,
            "wanted_low": wanted.low,
            "wanted_high": wanted.high,
        },
    )
    return found


def refuse_taken(connection: psycopg.Connection[Any], name: TableName, target: Relation) -> None:
    """:raises CatalogError: something else is called so; a partition of the target by now is not, since a parallel
    load may have made it."""
    row = connection.execute(
        queries("catalog")["taken"],
        {"schema": name.schema, "name": name.name, "parent": target.oid},
    ).fetchone()
    if row is None:
        return
    if row[0]:
        raise CatalogError(
            f"partition {name} of {target.name} is being detached, and its place is not free until that is done",
            remedy=f"{_finalize(str(name), str(target.name))}, then clear the task",
        )
    raise CatalogError(
        f"the partition to be made for {target.name} would be called {name}, which exists and is not "
        "that partition",
        remedy=f"rename or attach {name}, then clear the task",
    )


def _finalize(partition: str, parent: str) -> str:
    return f"let the session end that detaches it; if none does: ALTER TABLE {parent} DETACH PARTITION {partition} FINALIZE"


def partition_of(
    connection: psycopg.Connection[Any],
    target: Table,
    part: PartitionRange,
    existing: Sequence[Partition],
) -> Partition | None:
    """The partition with the bounds of *part*, whatever it is called by now; ``None`` where none has rows of it.

    :raises CatalogError: the table is cut differently by now, or the name for a new partition is taken.
    """
    column = target.column(target.partition_columns[0], use="the partition column")
    name = _existing_name(connection, target, part, existing, column.type)
    found = [p for p in existing if p.table == TableName(target.name.schema, name or "")]
    if name is None:
        (other,) = overlapping(connection, existing, part, column.type)
        raise CatalogError(
            f"partition {other.table} of {target.name} is partitioned itself, or lies in another schema, since the "
            "batch was staged",
            remedy="publish with strategy='auto', which then writes in place",
        )
    return found[0] if found else None


def refuse_default_rows(
    connection: psycopg.Connection[Any],
    target: Relation,
    column: str,
    wanted: Sequence[PartitionRange],
) -> None:
    """:raises CatalogError: a DEFAULT partition holds rows that belong into one of *wanted*."""
    for partition in read_partitions(connection, target):
        if not partition.is_default:
            continue
        for part in wanted:
            rows = scalar(
                connection,
                sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
                    statements.ident(partition.table),
                    statements.in_range(column, part.low, part.high),
                ),
            )
            if rows:
                where = statements.in_range(column, part.low, part.high).as_string(connection)
                raise CatalogError(
                    f"the DEFAULT partition {partition.table} of {target.name} holds {rows:,} rows of "
                    f"{part.low} to {part.high}, so a partition for that range cannot be attached",
                    remedy=f"move them out of {partition.table}, then clear the task; they are the rows where {where}",
                )


def refuse_dependents(connection: psycopg.Connection[Any], partitions: Sequence[Partition]) -> None:
    """:raises CatalogError: something hangs on a partition itself and would not follow a swap, or it is not ours."""
    for partition in partitions:
        if not scalar(connection, queries("catalog")["may_own"], {"oid": partition.oid}):
            raise _not_owned(connection, partition.table, "exchange it")
        refuse_uncreatable(connection, partition.table, partition.oid)
        found = problems(connection, partition)
        if found:
            raise CatalogError(
                f"partition {partition.table} cannot be swapped: {'; '.join(what for what, _ in found)}",
                remedy=f"{'; '.join(helps for _, helps in found)}, or publish with strategy='auto', which then writes "
                "in place",
            )


def refuse_uncreatable(connection: psycopg.Connection[Any], name: TableName, oid: int) -> None:
    """:raises CatalogError: no new table may get *name*, or not with the owner of *oid*: its schema does not let it."""
    found = connection.execute(
        queries("catalog")["missing_create"], {"schema": name.schema, "oid": oid}
    ).fetchall()
    if found:
        roles = ", ".join(role for (role,) in found)
        schema = quoted(name.schema)
        raise CatalogError(
            f"{roles} may make no table in schema {schema}, where a new partition is to be called {name}",
            remedy=f"GRANT CREATE ON SCHEMA {schema} TO {roles}",
        )


def exclude_from_default(
    connection: psycopg.Connection[Any],
    target: Relation,
    column: str,
    wanted: Sequence[PartitionRange],
    *,
    lock_timeout_ms: int,
    in_attempts: locking.Attempts = locking.once,
) -> None:
    """Let the DEFAULT partition's constraints say that it holds no row of *wanted*."""
    keep_out_of_default(
        connection,
        target,
        [(statements.excluding_name(part), statements.holds(column, part)) for part in wanted],
        lock_timeout_ms=lock_timeout_ms,
        in_attempts=in_attempts,
    )


def keep_out_of_default(
    connection: psycopg.Connection[Any],
    parent: Relation,
    conditions: Sequence[tuple[str, sql.Composable]],
    *,
    lock_timeout_ms: int,
    in_attempts: locking.Attempts = locking.once,
) -> None:
    """Let the DEFAULT partition's constraints, each with its name, say that no row of it fulfils *conditions*.

    ATTACH would otherwise scan it under its lock. The constraint is added without a scan, under a lock of
    an instant, and validated under one that stops nobody; it stays, since the partitions do. An empty
    DEFAULT needs none. The partitions of one that is partitioned itself inherit it.

    :param in_attempts: runs what needs that lock, until it is granted.
    """
    found = connection.execute(
        queries("catalog")["default_partition"], {"oid": parent.oid}
    ).fetchall()
    for schema, table_name, _ in found:
        table = TableName(schema, table_name)
        filled = scalar(
            connection, sql.SQL("SELECT EXISTS (SELECT FROM {})").format(statements.ident(table))
        )
        for name, condition in conditions if filled else ():
            known = {"schema": schema, "name": table_name, "constraint": name}
            if not scalar(connection, queries("catalog")["has_constraint"], known):
                step = statements.excluding_check(table, name, condition)

                def add(_: int, step: sql.Composed = step) -> None:
                    with connection.transaction():
                        connection.execute(
                            "SELECT set_config('lock_timeout', %s, true)", (str(lock_timeout_ms),)
                        )
                        connection.execute(step)

                in_attempts(add)
            try:
                connection.execute(statements.validate_constraint(table, name))
            except psycopg.errors.CheckViolation:
                # It would keep out more such rows, which nobody has asked for.
                connection.execute(statements.drop_constraint(table, name))
                raise CatalogError(
                    f"the DEFAULT partition {table} of {parent.name} holds rows that belong into a partition to be "
                    "attached",
                    remedy=f"move them out of {table}, then clear the task; they are the rows where "
                    f"{condition.as_string(connection)}",
                ) from None


def let_into_default(
    connection: psycopg.Connection[Any], parent: Relation, constraint: str, *, log: EventLog
) -> None:
    """Take back what :func:`keep_out_of_default` did, where no partition was attached after all."""
    for step in _drop_from_default(connection, parent, [constraint]):
        try:
            with connection.transaction():
                connection.execute("SET LOCAL lock_timeout = '1s'")
                connection.execute(step)
        except psycopg.errors.UndefinedObject:
            # Somebody else has taken it back between the look and now.
            continue
        except psycopg.errors.LockNotAvailable:
            log(
                "DEFAULT keeps out rows whose partition could not be attached, until the next run attaches it",
                table=str(parent.name),
                constraint=constraint,
            )


def let_in_again(
    connection: psycopg.Connection[Any], parent: Relation, partition: Partition
) -> list[sql.Composed]:
    """The statements that let DEFAULT take the rows again whose partition goes."""
    names = [statements.excluding_name_of(partition.bound)]
    if partition.low is not None and partition.high is not None:
        names.append(statements.excluding_name(PartitionRange("", partition.low, partition.high)))
    return _drop_from_default(connection, parent, names)


def _drop_from_default(
    connection: psycopg.Connection[Any], parent: Relation, names: Sequence[str]
) -> list[sql.Composed]:
    found = connection.execute(
        queries("catalog")["default_partition"], {"oid": parent.oid}
    ).fetchall()
    return [
        statements.drop_constraint(TableName(schema, table), name)
        for schema, table, _ in found
        for name in names
        if scalar(
            connection,
            queries("catalog")["has_constraint"],
            {"schema": schema, "name": table, "constraint": name},
        )
    ]


def what_hinders(connection: psycopg.Connection[Any], partition: Partition) -> list[str]:
    """Why *partition* itself, unlike others of its table, cannot be exchanged by this role, or at all."""
    try:
        refuse_dependents(connection, [partition])
    except CatalogError as error:
        return [error.what]
    return []


def what_hinders_new(
    connection: psycopg.Connection[Any], target: Relation, parts: Sequence[PartitionRange]
) -> list[str]:
    """Why none of *parts*, which *target* does not have yet, can be made by this role."""
    try:
        for part in parts:
            refuse_uncreatable(connection, TableName(target.name.schema, part.name), target.oid)
    except CatalogError as error:
        return [error.what]
    return []


def _not_owned(connection: psycopg.Connection[Any], table: TableName, what: str) -> CatalogError:
    user = connection.info.user
    return CatalogError(
        f"role {user} does not own {table}, and only its owner may {what}",
        remedy=f"ALTER TABLE {table} OWNER TO {quoted(user)}, or GRANT the owner's role TO {quoted(user)}",
    )


def obstacles(connection: psycopg.Connection[Any], target: Table) -> list[CatalogError]:
    """Why no partition of *target* can be exchanged by this role, or at all; with what would help."""
    found = []
    referencing = connection.execute(
        queries("catalog")["referencing_foreign_keys"], {"oid": target.oid}
    ).fetchall()
    if referencing:
        found.append(
            CatalogError(
                f"{', '.join(dict.fromkeys(name for name, _ in referencing))} reference {target.name} by foreign key: "
                "PostgreSQL lets no referenced partition be detached",
                remedy=f"{'; '.join(without for _, without in referencing)}, or load {target.name} by another way than "
                "swap",
            )
        )
    published = connection.execute(
        queries("catalog")["publications"], {"oid": target.oid}
    ).fetchall()
    if published:
        out = [
            without
            or f"make publication {quoted(name)}, which holds all tables, anew FOR TABLE ..."
            for name, without in published
        ]
        found.append(
            CatalogError(
                f"{target.name} is in publication {', '.join(name for name, _ in published)}: subscribers would not see "
                "a swap",
                remedy=f"{'; '.join(out)}, or load it by another way than swap",
            )
        )
    if not scalar(connection, queries("catalog")["may_own"], {"oid": target.oid}):
        found.append(_not_owned(connection, target.name, "attach partitions"))
    for other, lacking in connection.execute(
        queries("catalog")["missing_references"], {"oid": target.oid}
    ).fetchall():
        user = connection.info.user
        found.append(
            CatalogError(
                f"{target.name} refers to {other} by foreign key, and role {user} lacks {lacking} there: REFERENCES gives a "
                "new partition that key, UPDATE allows the lock under which it is attached",
                remedy=f"GRANT {lacking} ON {other} TO {quoted(user)}",
            )
        )
    for pending, parent in connection.execute(
        queries("catalog")["detach_pending"], {"oid": target.oid}
    ).fetchall():
        found.append(
            CatalogError(
                f"partition {pending} of {target.name} is being detached: DETACH CONCURRENTLY is at work, or was broken off",
                remedy=_finalize(pending, parent),
            )
        )
    if missing_privileges(connection, target, ("SELECT",)):
        user = connection.info.user
        found.append(
            CatalogError(
                f"role {user} may not read {target.name}",
                remedy=f"GRANT SELECT ON {target.name} TO {quoted(user)}",
            )
        )
    minor = connection.info.server_version
    if minor in _LOSES_FOREIGN_KEYS and scalar(
        connection, queries("catalog")["refers_to_partitioned"], {"oid": target.oid}
    ):
        found.append(
            CatalogError(
                f"this release of the server ({minor // 10000}.{minor % 10000}) may leave a detached partition without "
                f"its foreign keys, and {target.name} refers to a partitioned table",
                remedy="upgrade the server to its latest minor release, or load by another way than swap",
            )
        )
    return found


def refuse_unswappable(connection: psycopg.Connection[Any], target: Table) -> None:
    """:raises CatalogError: no partition of *target* can be exchanged by this role, or at all."""
    for obstacle in obstacles(connection, target):
        raise obstacle
