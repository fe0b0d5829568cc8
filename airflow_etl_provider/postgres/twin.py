"""Making a table its siblings' twin before it is attached: indexes, keys, checks, and what the partition that
it replaces has of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from psycopg import sql
from psycopg.rows import dict_row

from airflow_etl_provider.core.names import TableName, shortened
from airflow_etl_provider.postgres import statements
from airflow_etl_provider.postgres.catalog import Partition, Relation, scalar
from airflow_etl_provider.postgres.locking import Attempts
from airflow_etl_provider.postgres.queries import queries

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parent:
    """The table that a partition hangs on: the target, or a partition of it that is partitioned itself."""

    name: TableName
    oid: int


@dataclass(frozen=True, slots=True)
class Index:
    """An index that the partition must have: the parent's, or one of the replaced partition's own.

    ``columns`` are those of its key, ``None`` for an expression. Its definition begins with ``USING``; ``predicate``
    and ``options`` are parts of it.
    """

    oid: int
    name: str
    definition: str
    predicate: str | None
    options: str | None
    is_unique: bool
    constraint_type: str | None
    constraint_definition: str | None
    is_deferrable: bool
    is_deferred: bool
    is_replica_identity: bool
    of_parent: bool
    columns: tuple[str | None, ...]

    @property
    def keeps_out(self) -> bool:
        """Whether it may refuse a row."""
        return self.is_unique or self.constraint_type is not None

    @property
    def body(self) -> str:
        """Its definition without storage options and predicate."""
        body = self.definition
        if self.predicate is not None:
            body = body.removesuffix(f" WHERE {self.predicate}")
        if self.options is not None:
            body = body.removesuffix(f" WITH ({self.options})")
        return body

    @property
    def excludes(self) -> bool:
        """Whether only a constraint makes it: EXCLUDE, or (since 18) a key WITHOUT OVERLAPS.

        Nothing else has a unique index of that method.
        """
        return self.constraint_type == "x" or (
            self.is_unique and self.definition.startswith("USING gist ")
        )


@dataclass(frozen=True, slots=True)
class Storage:
    """How an index is stored: its tablespace, ``None`` for the role's default, and its options as ``WITH`` has them."""

    tablespace: str | None
    options: str | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """A statistics object of a partition."""

    name: TableName
    definition: str
    target: int | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Sibling:
    """The partition that a new one is made like, and the indexes that it had of its own when it was looked at."""

    partition: Partition
    indexes: tuple[Index, ...]


def tablespace_of(connection: psycopg.Connection[Any], oid: int) -> str | None:
    """Where a table is kept; ``None`` for the database's own tablespace."""
    row = connection.execute(queries("twin")["tablespace"], {"oid": oid}).fetchone()
    return None if row is None else row[0]


def twin_to_fill(
    connection: psycopg.Connection[Any],
    name: TableName,
    parent: Relation,
    old: Partition | None,
    sibling: Partition | None,
) -> list[sql.Composed]:
    """The statements that make *name*, empty, for rows that are stored as those of *old* are, whose place it takes, or
    of *sibling*.

    What is said of storage later would hold for none of the rows.
    """
    model = old or sibling
    if model is None:
        return [statements.create_twin(name, parent.name, tablespace_of(connection, parent.oid))]
    params = {"old": model.oid, "parent": parent.oid, "of_sibling": old is None}
    tablespace = scalar(connection, queries("twin")["tablespace_like"], params)
    return [
        statements.create_twin(name, parent.name, tablespace),
        *_storage(connection, name, parent.oid, model, has=parent.oid, of_sibling=old is None),
    ]


def _storage(
    connection: psycopg.Connection[Any],
    name: TableName,
    parent: int,
    model: Partition,
    *,
    has: int,
    of_sibling: bool,
) -> list[sql.Composed]:
    """What lets *name* store its rows as *model* does, as far as the table *has* (oid) does otherwise."""
    params = {
        "new": str(name),
        "old": model.oid,
        "parent": parent,
        "has": has,
        "of_sibling": of_sibling,
    }
    rows = connection.execute(queries("twin")["storage"], params).fetchall()
    return [sql.Composed([sql.SQL(step)]) for (step,) in rows]


def like_sibling(
    connection: psycopg.Connection[Any], name: TableName, parent: int, sibling: Partition
) -> list[sql.Composed]:
    """What gives *name*, made empty and not attached yet, all that *sibling* has beyond *parent* (oid)."""
    params = {"old": sibling.oid, "parent": parent, "new": str(name), "of_sibling": True}
    rows = connection.execute(queries("twin")["before_attach"], params).fetchall()
    steps = _storage(connection, name, parent, sibling, has=parent, of_sibling=True)
    steps += [sql.Composed([sql.SQL(step)]) for (step,) in rows]
    # ATTACH would make those of the parent too, but as that says; it takes the ones that are there.
    shared = parent_indexes(connection, Parent(name, parent)) if sibling.is_leaf else []
    indexes = [*shared, *indexes_of_sibling(connection, sibling)]
    theirs = _index_names_of(connection, sibling)
    stored = index_storage(connection, indexes, sibling, of_sibling=True, leaf=sibling.is_leaf)
    made: dict[str, Index] = {}
    for index in indexes:
        like = theirs.get(index.oid, index.name)
        made[chosen := _index_name_like(connection, like, sibling, name, list(made))] = index
        steps += build_index(name, chosen, index, stored.get(index.oid))
    steps += [
        sql.Composed([said])
        for said in index_settings(connection, name, made, sibling, of_sibling=True)
    ]
    named: list[str] = []
    for found in statistics_of(connection, sibling.oid):
        called = _statistics_name_like(connection, found, sibling, name, named)
        named.append(called.name)
        steps += make_statistics(name, called, found)
    return steps + _from_sibling(connection, sibling.oid, parent, name, name)


def _from_sibling(
    connection: psycopg.Connection[Any], sibling: int, parent: int, new: TableName, final: TableName
) -> list[sql.Composed]:
    """What *final* needs of a sibling once it bears its name: grants, and whether autovacuum is to look after it."""
    params = {
        "old": sibling,
        "parent": parent,
        "new": str(new),
        "schema": new.schema,
        "final": str(final),
        "of_sibling": True,
    }
    rows = connection.execute(queries("twin")["after_attach"], params).fetchall()
    return [sql.Composed([sql.SQL(step)]) for (step,) in rows]


def _index_name_like(
    connection: psycopg.Connection[Any],
    name: str,
    sibling: Partition,
    final: TableName,
    chosen: Sequence[str],
) -> str:
    own = name.removeprefix(sibling.table.name + "_")
    return _free(connection, shortened(f"{final.name}_{own}"), final.schema, chosen, None)


def _index_names_of(connection: psycopg.Connection[Any], partition: Partition) -> dict[int, str]:
    """What a partition's indexes are called that it has from its parent, by those of that (oid)."""
    known = {"oid": partition.oid}
    rows = connection.execute(queries("catalog")["child_index_names"], known).fetchall()
    return {of_parent: name for of_parent, name in rows if of_parent is not None}


def _statistics_name_like(
    connection: psycopg.Connection[Any],
    found: Statistics,
    sibling: Partition,
    final: TableName,
    chosen: Sequence[str],
) -> TableName:
    own = found.name.name.removeprefix(sibling.table.name + "_")
    candidates = _numbered(shortened(f"{final.name}_{own}"))
    known = {"schema": final.schema, "names": candidates}
    rows = connection.execute(queries("twin")["taken_statistics_names"], known)
    return TableName(final.schema, _first(candidates, {*chosen, *(name for (name,) in rows)}))


def parent_indexes(connection: psycopg.Connection[Any], parent: Relation) -> list[Index]:
    """The indexes that every partition of *parent* has, and that ATTACH takes from one that is built aside.

    It compares none of those that exclude, and makes them itself.
    """
    found = _indexes(connection, queries("catalog")["parent_indexes"], {"oid": parent.oid}, True)
    return [index for index in found if not index.excludes]


def own_indexes(connection: psycopg.Connection[Any], old: Partition | None) -> list[Index]:
    """The indexes that only *old* has."""
    if old is None:
        return []
    return _indexes(connection, queries("twin")["own_indexes"], {"old": old.oid}, False)


def indexes_of_sibling(connection: psycopg.Connection[Any], sibling: Partition) -> list[Index]:
    """Those that only *sibling* has and a new partition shall have too.

    One that keeps rows out is a rule of the table only if all partitions have it.
    """
    own = own_indexes(connection, sibling)
    if not any(index.keeps_out for index in own):
        return own
    rows = connection.execute(queries("twin")["keeping_out"], {"old": sibling.oid}).fetchall()
    everywhere = {definition for (definition,) in rows}
    return [index for index in own if not index.keeps_out or index.definition in everywhere]


def paired_indexes(
    has: Sequence[Index], wanted: Sequence[Index]
) -> list[tuple[Index, Index | None]]:
    """Each of *wanted* with that of the indexes which a detached table *has* that is the same."""
    left = list(has)
    pairs: list[tuple[Index, Index | None]] = []
    for index in wanted:
        same = next((own for own in left if _alike(own, index)), None)
        if same is not None:
            left.remove(same)
        pairs.append((index, same))
    return pairs


def _alike(one: Index, other: Index) -> bool:
    """Whether ATTACH takes one index for the other, however each is stored."""
    return _shape(one) == _shape(other)


def _shape(index: Index) -> tuple[object, ...]:
    constraint = index.constraint_definition
    if constraint is not None and index.options is not None:
        constraint = constraint.replace(f" WITH ({index.options})", "", 1)
    return index.body, index.predicate, index.is_unique, index.constraint_type, constraint


def _indexes(
    connection: psycopg.Connection[Any], query: sql.SQL, params: dict[str, Any], of_parent: bool
) -> list[Index]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, params).fetchall()
    return [
        Index(
            oid=row["oid"],
            name=row["name"],
            definition=row["definition"],
            predicate=row["predicate"],
            options=row["options"],
            is_unique=row["is_unique"],
            constraint_type=row["constraint_type"],
            constraint_definition=row["constraint_definition"],
            is_deferrable=bool(row["is_deferrable"]),
            is_deferred=bool(row["is_deferred"]),
            is_replica_identity=row["is_replica_identity"],
            of_parent=of_parent,
            columns=tuple(row["columns"]),
        )
        for row in rows
    ]


def working_name(table: TableName, index: Index) -> str:
    """The name of a future partition's index until it is attached: another one where *index* is not the same."""
    what = f"{index.name} {index.is_unique} {index.definition} {index.constraint_definition}"
    return f"{shortened(table.name, room=9)}_{hashlib.blake2s(what.encode(), digest_size=4).hexdigest()}"


def identity_defaults(
    connection: psycopg.Connection[Any], target: Relation, new: TableName, given: Sequence[str]
) -> tuple[list[sql.SQL], list[sql.SQL]]:
    """What to run before and after *new* is filled with the columns *given*, so that identity values are drawn."""
    rows = connection.execute(
        queries("twin")["identity_defaults"],
        {"target": target.oid, "new": str(new), "given": list(given)},
    ).fetchall()
    # The server's own rendering.
    return [sql.SQL(before) for before, _ in rows], [sql.SQL(after) for _, after in rows]


def finish(
    connection: psycopg.Connection[Any],
    table: TableName,
    condition: sql.Composable,
    parent: Relation,
    old: Partition | None,
    indexes: Sequence[Index],
    *,
    in_attempts: Attempts,
    sibling: Sibling | None = None,
) -> None:
    """Give *table* all that can be given before it is attached, then analyze it.

    A try before this one may have done it, or a part of it: what is there is left as it is, but for indexes
    that the parent no longer has.

    :param condition: which rows the partition's bound lets in.
    :param old: the partition whose place it takes; ``None`` if there is none.
    :param sibling: the one that it is made like in that case.
    :param in_attempts: runs what needs a lock on tables that foreign keys refer to, until it is granted.
    """
    known = {"schema": table.schema, "name": table.name}
    has_constraint = queries("catalog")["has_constraint"]
    begun = scalar(connection, has_constraint, {**known, "constraint": statements.BOUND_CHECK})
    with connection.transaction():
        model = old if sibling is None else sibling.partition
        if model is not None:
            # It was filled as that said then.
            oid = scalar(connection, "SELECT to_regclass(%(t)s)::oid::bigint", {"t": str(table)})
            for step in _storage(
                connection, table, parent.oid, model, has=oid, of_sibling=sibling is not None
            ):
                connection.execute(step)
        if model is not None and not begun:
            params = {
                "old": model.oid,
                "parent": parent.oid,
                "new": str(table),
                "of_sibling": sibling is not None,
            }
            own_steps = connection.execute(queries("twin")["before_attach"], params)
            for (own,) in own_steps.fetchall():
                connection.execute(own)
        stored = index_storage(connection, indexes, model, of_sibling=sibling is not None)
        _have_indexes(connection, table, indexes, stored)
        if model is not None:
            _have_statistics(connection, table, model)
        if not begun:
            connection.execute(statements.bound_check(table, condition))
    like = parent.oid if old is None else old.oid
    foreign = connection.execute(queries("twin")["foreign_keys"], {"oid": like}).fetchall()
    for name, definition in foreign:
        if not scalar(connection, has_constraint, {**known, "constraint": name}):
            # Added without a look at the rows, under a lock of an instant, which writers of the other
            # table could hold up; checked under one that stops nobody.
            step = add_constraint(
                table, name, f"{definition} NOT VALID" if is_enforced(definition) else definition
            )

            def add(_: int, step: sql.Composed = step) -> None:
                with connection.transaction():
                    connection.execute("SET LOCAL lock_timeout = '300ms'")
                    connection.execute(step)

            in_attempts(add)
        if is_enforced(definition):
            connection.execute(statements.validate_constraint(table, name))
    if model is not None:
        named = {working_name(table, index): index for index in indexes}
        for said in index_settings(connection, table, named, model, of_sibling=sibling is not None):
            connection.execute(said)
    connection.execute(sql.SQL("ANALYZE {}").format(statements.ident(table)))


def is_enforced(definition: str) -> bool:
    """Whether a constraint of that *definition*, the server's own rendering, is checked at all (since 18)."""
    return not definition.endswith(" NOT ENFORCED")


def index_settings(
    connection: psycopg.Connection[Any],
    table: TableName,
    indexes: Mapping[str, Index],
    model: Partition,
    *,
    of_sibling: bool = False,
) -> list[sql.SQL]:
    """What is said of the indexes of *model*, also of those it has from its parent, for those of *table* by name."""
    rows = connection.execute(
        queries("twin")["index_settings"],
        {
            "model": model.oid,
            "new": str(table),
            "schema": table.schema,
            "oids": [index.oid for index in indexes.values()],
            "names": list(indexes),
            "of_sibling": of_sibling,
        },
    ).fetchall()
    return [sql.SQL(row[0]) for row in rows]


def index_storage(
    connection: psycopg.Connection[Any],
    indexes: Sequence[Index],
    model: Partition | None,
    *,
    of_sibling: bool = False,
    leaf: bool = True,
) -> dict[int, Storage]:
    """How each of *indexes* (by oid) is to be stored for a table that is made like *model*.

    :param leaf: the table is not partitioned itself.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            queries("twin")["index_storage"],
            {
                "oids": [index.oid for index in indexes],
                "model": None if model is None else model.oid,
                "of_sibling": of_sibling,
                "leaf": leaf,
            },
        ).fetchall()
    denied = sorted({row["denied"] for row in rows if row["denied"] is not None})
    if denied:
        log.warning(
            "indexes go to the default tablespace, since the role may not create in theirs",
            tablespaces=denied,
            remedy="GRANT CREATE ON TABLESPACE to the role",
        )
    return {row["oid"]: Storage(row["tablespace"], row["options"]) for row in rows}


def _have_indexes(
    connection: psycopg.Connection[Any],
    table: TableName,
    indexes: Sequence[Index],
    stored: Mapping[int, Storage],
) -> None:
    """Build those of *indexes* that *table* lacks, and drop what is none of them."""
    wanted = {working_name(table, index): index for index in indexes}
    rows = _indexes_of(connection, table)
    for name, is_constraint in rows:
        if name not in wanted and is_constraint:
            connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                    statements.ident(table), sql.Identifier(name)
                )
            )
        elif name not in wanted:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema, name)))
    there = {name for name, _ in rows}
    for name, index in wanted.items():
        if name not in there:
            for step in build_index(table, name, index, stored.get(index.oid)):
                connection.execute(step)


def _have_statistics(
    connection: psycopg.Connection[Any], table: TableName, model: Partition
) -> None:
    """Give *table* those of the statistics objects of *model* that it lacks, so that ANALYZE fills them."""
    there = _statistics_there(connection, table)
    for found in statistics_of(connection, model.oid):
        name = _working_statistics(table, found)
        for step in [] if name in there else make_statistics(table, name, found):
            connection.execute(step)


def _indexes_of(connection: psycopg.Connection[Any], table: TableName) -> list[tuple[str, bool]]:
    """The indexes that *table* has already, by name, and whether a constraint stands on each."""
    known = {"schema": table.schema, "name": table.name}
    return connection.execute(queries("twin")["indexes_of"], known).fetchall()


def last_touches(
    connection: psycopg.Connection[Any],
    old: Partition | None,
    parent: Relation,
    new: TableName,
    final: TableName,
    sibling: Sibling | None = None,
) -> list[sql.Composable]:
    """The statements that *new* needs once it is called *final*: comment, owner, grants, own triggers and rules.

    Where it takes nobody's place, the grants are those of its *sibling*, or what the schema's tables get by default.
    """
    if old is None:
        touches: list[sql.Composable] = [
            sql.SQL("COMMENT ON TABLE {} IS NULL").format(statements.ident(final))
        ]
        owner = scalar(connection, queries("catalog")["owner"], {"oid": parent.oid})
        if owner is not None:
            touches.append(statements.give(final, owner))
        if sibling is not None:
            touches += _from_sibling(connection, sibling.partition.oid, parent.oid, new, final)
        elif new.schema != final.schema:
            known = {"schema": final.schema, "final": str(final)}
            rows = connection.execute(queries("twin")["grants_of_schema"], known).fetchall()
            touches += [sql.SQL(row[0]) for row in rows]
        return touches
    params = {
        "old": old.oid,
        "parent": parent.oid,
        "new": str(new),
        "schema": new.schema,
        "final": str(final),
        "of_sibling": False,
    }
    rows = connection.execute(queries("twin")["after_attach"], params).fetchall()
    return [sql.SQL(row[0]) for row in rows]


def statistics_of(connection: psycopg.Connection[Any], oid: int) -> list[Statistics]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries("twin")["statistics_of"], {"oid": oid}).fetchall()
    return [
        Statistics(
            TableName(row["schema"], row["name"]), row["definition"], row["target"], row["comment"]
        )
        for row in rows
    ]


def make_statistics(table: TableName, name: TableName, like: Statistics) -> list[sql.Composed]:
    """The statements that give *table* such a statistics object."""
    steps = [
        # The server's own rendering of what is counted.
        sql.SQL("CREATE STATISTICS {}{} FROM {}").format(
            statements.ident(name), sql.SQL(like.definition), statements.ident(table)
        )
    ]
    if like.target is not None:
        steps.append(
            sql.SQL("ALTER STATISTICS {} SET STATISTICS {}").format(
                statements.ident(name), sql.Literal(like.target)
            )
        )
    if like.comment is not None:
        steps.append(
            sql.SQL("COMMENT ON STATISTICS {} IS {}").format(
                statements.ident(name), sql.Literal(like.comment)
            )
        )
    return steps


def _working_statistics(table: TableName, like: Statistics) -> TableName:
    """What a future partition's statistics object is called until it is attached."""
    what = f"{like.name} {like.definition}"
    digest = hashlib.blake2s(what.encode(), digest_size=4).hexdigest()
    return TableName(table.schema, f"{shortened(table.name, room=9)}_{digest}")


def _statistics_there(connection: psycopg.Connection[Any], table: TableName) -> set[TableName]:
    rows = connection.execute(queries("twin")["statistics_there"], {"table": str(table)})
    return {TableName(schema, name) for schema, name in rows}


def move_statistics(
    connection: psycopg.Connection[Any],
    new: TableName,
    final: TableName,
    old: Partition | None,
    sibling: Sibling | None,
    aside: Callable[[TableName], TableName],
) -> list[sql.Composed]:
    """Statistics objects do not follow their table into another schema: send those of both tables after it.

    :param aside: where the replaced ones go.
    """
    there = _statistics_there(connection, new)
    like = old if sibling is None else sibling.partition
    steps: list[sql.Composed] = []
    chosen: list[str] = []
    for found in [] if like is None else statistics_of(connection, like.oid):
        if sibling is None:
            name = found.name
            steps += statements.move(name, aside(name), kind="STATISTICS")
        else:
            name = _statistics_name_like(connection, found, sibling.partition, final, chosen)
            chosen.append(name.name)
        working = _working_statistics(new, found)
        if working in there:
            there.remove(working)
            steps += statements.move(working, name, kind="STATISTICS")
        else:
            steps += make_statistics(final, name, found)
    # What the partition no longer has.
    steps += [sql.SQL("DROP STATISTICS {}").format(statements.ident(name)) for name in there]
    return steps


def problems(connection: psycopg.Connection[Any], old: Partition) -> list[tuple[str, str]]:
    """What hangs on *old* itself and could not follow to its replacement, each with what would help."""
    return connection.execute(queries("twin")["problems"], {"old": old.oid}).fetchall()


def final_index_names(
    connection: psycopg.Connection[Any],
    indexes: Sequence[Index],
    old: Partition | None,
    parent: TableName,
    final: TableName,
    sibling: Sibling | None = None,
) -> list[str]:
    """What the indexes will be called: as on the replaced partition, else as on the *sibling*, else after partition
    and parent's index.

    Names that are taken get a number, as PostgreSQL's own do.
    """
    before = {} if old is None else _index_names_of(connection, old)
    beside = {} if sibling is None else _index_names_of(connection, sibling.partition)
    chosen: list[str] = []
    for index in indexes:
        if sibling is not None and (index.oid in beside or not index.of_parent):
            like = beside.get(index.oid, index.name)
            name = _index_name_like(connection, like, sibling.partition, final, chosen)
        elif not index.of_parent:
            name = index.name
        elif index.oid in before:
            name = before[index.oid]
        else:
            own = index.name.removeprefix(parent.name + "_")
            name = _free(connection, shortened(f"{final.name}_{own}"), final.schema, chosen, old)
        chosen.append(name)
    return chosen


def _free(
    connection: psycopg.Connection[Any],
    name: str,
    schema: str,
    chosen: Sequence[str],
    old: Partition | None,
) -> str:
    candidates = _numbered(name)
    taken = {
        row[0]
        for row in connection.execute(
            queries("twin")["taken_names"],
            {"schema": schema, "names": candidates, "old": 0 if old is None else old.oid},
        )
    }
    return _first(candidates, {*taken, *chosen})


def _numbered(name: str) -> list[str]:
    return [name, *(f"{shortened(name, room=3)}{number}" for number in range(1, 100))]


def _first(candidates: Sequence[str], taken: Collection[str]) -> str:
    return next(name for name in candidates if name not in taken)


def build_index(
    table: TableName, name: str, index: Index, stored: Storage | None = None
) -> list[sql.Composed]:
    """The statements that give *table* such an index, and the constraint that stands on it.

    :param stored: where and how; as *index* says, and in the role's default tablespace, if ``None``.
    """
    if index.excludes:
        return [add_constraint(table, name, index.constraint_definition or "")]
    stored = stored or Storage(None, index.options)
    steps: list[sql.Composed] = [
        sql.SQL("CREATE {}INDEX {} ON {} {}{}{}{}").format(
            sql.SQL("UNIQUE " if index.is_unique else ""),
            sql.Identifier(name),
            statements.ident(table),
            # The server's own renderings.
            sql.SQL(index.body),
            sql.SQL("" if stored.options is None else f" WITH ({stored.options})"),
            sql.SQL("")
            if stored.tablespace is None
            else sql.SQL(" TABLESPACE {}").format(sql.Identifier(stored.tablespace)),
            sql.SQL("" if index.predicate is None else f" WHERE {index.predicate}"),
        )
    ]
    if index.constraint_type in ("p", "u"):
        kind = "PRIMARY KEY" if index.constraint_type == "p" else "UNIQUE"
        deferral = " DEFERRABLE" if index.is_deferrable else ""
        deferral += " INITIALLY DEFERRED" if index.is_deferred else ""
        steps.append(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} USING INDEX {}{}").format(
                statements.ident(table),
                sql.Identifier(name),
                sql.SQL(kind),
                sql.Identifier(name),
                sql.SQL(deferral),
            )
        )
    if index.is_replica_identity:
        steps.append(
            sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(
                statements.ident(table), sql.Identifier(name)
            )
        )
    return steps


def restore_options(schema: str, index: Index, like: Storage) -> list[sql.Composed]:
    """The statements that give an *index* that is there the options of another; what is in it stays as it is."""
    if index.options == like.options:
        return []
    name = sql.Identifier(schema, index.name)
    steps: list[sql.Composed] = []
    if index.options is not None:
        reset = ", ".join(option.partition("=")[0] for option in index.options.split(", "))
        steps.append(sql.SQL("ALTER INDEX {} RESET ({})").format(name, sql.SQL(reset)))
    if like.options is not None:
        steps.append(sql.SQL("ALTER INDEX {} SET ({})").format(name, sql.SQL(like.options)))
    return steps


def partition_index(
    connection: psycopg.Connection[Any],
    table: TableName,
    parent: Relation,
    old: Partition | None,
    columns: Collection[str],
) -> bool | None:
    """Build, ahead of :func:`finish`, a unique index of the future partition *table* over (some of) *columns*.

    :returns: whether there is one now; not if rows share their values. ``None`` if the partition needs no such.
    """
    for index in [*parent_indexes(connection, parent), *own_indexes(connection, old)]:
        if index.is_unique and not index.excludes and set(index.columns) <= set(columns):
            name = working_name(table, index)
            if name in dict(_indexes_of(connection, table)):
                return True
            stored = index_storage(connection, [index], old).get(index.oid)
            return _built(connection, build_index(table, name, index, stored))
    return None


def batch_index(
    connection: psycopg.Connection[Any], table: TableName, columns: Sequence[str]
) -> bool:
    """Build a unique index over *columns* of a staged table; it goes when the table goes, or becomes a partition.

    :returns: whether there is one now; not if rows share their values.
    """
    step = sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(
        statements.ident(table), statements.names(columns)
    )
    return _built(connection, [step])


def _built(connection: psycopg.Connection[Any], steps: Sequence[sql.Composed]) -> bool:
    try:
        with connection.transaction():
            for step in steps:
                connection.execute(step)
    except (psycopg.errors.UniqueViolation, psycopg.errors.ProgramLimitExceeded):
        # Duplicates, which are counted then, or values that are too long for an index.
        return False
    except (psycopg.errors.UndefinedObject, psycopg.errors.FeatureNotSupported):
        # A type that nothing orders.
        return False
    return True


def add_constraint(table: TableName, name: str, definition: str) -> sql.Composed:
    """*definition* is the server's own rendering of a constraint."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
        statements.ident(table), sql.Identifier(name), sql.SQL(definition)
    )
