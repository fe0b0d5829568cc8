"""What one kind of database adds to DB-API: its catalog, its snapshot, its clock and its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from airflow_etl_provider.core.columns import Selected
from airflow_etl_provider.core.errors import CatalogError, EtlError
from airflow_etl_provider.core.ports import Figure, SourceColumn
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.dbapi.driver import Connection, Row
from airflow_etl_provider.dbapi.statements import Dialect, Relation

Connect = Callable[[], Connection]

#: About how much text is made of one fetch.
BLOCK = 1024 * 1024
#: Rows of one fetch at most, however narrow they are: what is worked on column by column should stay in
#: the processor's cache.
MOST_ROWS = 512


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be read.

    :param types: PostgreSQL types that the user declares for columns; every value is checked against it.
    :param clock: what the cursor would show at the time of the snapshot, where it shows times.
    :param hash_key: the key of columns that are hashed.
    :param remarks: a value that its column cannot hold is sent all the same, and each row ends with what is
        to be said against it.
    """

    relation: Relation
    columns: Sequence[Selected] = ()
    cursor: str | None = None
    window: Window = Window()  # noqa: RUF009 - a frozen value
    types: Mapping[str, str] | None = None
    clock: str | None = None
    hash_key: str | None = field(default=None, repr=False)
    remarks: bool = False

    @property
    def looks_outside(self) -> bool:
        """Whether rows that no window holds are to be counted."""
        return self.cursor is not None and self.window.nulls is not Nulls.ONLY

    def ends(self, dialect: Dialect, type_: str | None) -> tuple[str | None, str | None]:
        """The text of both bounds: the window's own for a table, what the query takes if it does.

        :raises ConfigurationError: the query takes bounds, and the window has none to give.
        """
        found = self.relation.ends(dialect, self.window, type_)
        return (self.window.low, self.window.high) if found is None else found


@dataclass(frozen=True, slots=True)
class Reading:
    """An open statement in its snapshot.

    :param fetch: the next rows, at most so many, none at the end.
    :param encode: rows and the number of the first as COPY text.
    :param unreachable: rows ahead of the source's clock, ``None`` if they were not counted.
    :param most_rows: how many rows of the greatest width fit into memory.
    """

    close: Callable[[], None]
    fetch: Callable[[int], Sequence[Row]]
    encode: Callable[[Sequence[Row], int], bytes]
    null_cursors: int
    unreachable: int | None
    most_rows: int


class Flavour(Protocol):
    """One kind of database behind DB-API."""

    @property
    def dialect(self) -> Dialect: ...

    def describe(
        self, connection: Connection, request: Request
    ) -> tuple[tuple[SourceColumn, ...], tuple[str, str]]:
        """The columns in their order, with PostgreSQL types that hold their values, and the dataset.

        :raises CatalogError: no such table.
        """
        ...

    def begin(self, connection: Connection) -> datetime:
        """Start one snapshot for all that follows; returns the source's clock."""
        ...

    def read(self, connection: Connection, request: Request) -> Reading:
        """Count the rows that no window holds, and start to read the window.

        :raises ConfigurationError: a column is to be hashed, which this database cannot.
        """
        ...

    def measure(
        self, connection: Connection, request: Request, figures: Sequence[Figure]
    ) -> Sequence[Any]:
        """The number of rows of the window, and *figures* by the source's columns."""
        ...

    def bound(self, text: str, type_: str) -> Any:
        """A bound in PostgreSQL's text as a value that the driver binds."""
        ...

    def interrupter(self, connection: Connection, connect: Connect) -> Callable[[], None]:
        """What ends, when called from another thread, whatever *connection* then executes."""
        ...

    def translate(self, error: Exception, what: str) -> EtlError:
        """Our error for a driver's."""
        ...


def declared_type(
    name: str, types: Mapping[str, str] | None, proven: str, allowed: Sequence[str] | None = None
) -> str:
    """The type of a column: the user's word where it was given, else what the catalog proves.

    :param allowed: what may be declared; anything if ``None``, since every value is checked.
    :raises CatalogError: a type that the column's values cannot be checked against.
    """
    wanted = (types or {}).get(name)
    if wanted is None or wanted == proven:
        return proven
    if allowed is not None and wanted not in allowed:
        raise CatalogError(
            f"column {name} is {proven}; it cannot be declared as {wanted}",
            remedy=f"declare one of: {', '.join([proven, *allowed])}",
        )
    return wanted


def refuse_unknown(types: Mapping[str, str] | None, known: Sequence[str], where: str) -> None:
    """:raises CatalogError: a declared type for a column that does not exist."""
    for name in types or {}:
        if name not in known:
            raise CatalogError(
                f"types names {name!r}, which {where} has not{nearest(name, known)}",
                remedy=f"its columns are: {', '.join(known)}",
            )


def no_such_table(name: str, known: Sequence[str], where: str) -> CatalogError:
    """The error for a table that is not there, with the nearest that is."""
    return CatalogError(
        f"{where} has no table {name!r} that the connection's role may read{nearest(name, known)}",
        remedy="check the name and the privileges of the role",
    )


def text_of(value: Any) -> str:
    """What a driver gives for text: some give bytes."""
    return value.decode() if isinstance(value, bytes | bytearray) else str(value)
