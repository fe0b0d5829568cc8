"""Others at work at any statement of a load: another try, a newer load of the run, writers, a migration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from uuid6 import uuid7

from tests.crash import REPORT
from tests.crash.cases import CASES
from tests.crash.lab import Lab, Point, Prepared, differences
from tests.crash.points import chosen, points_of, tell

#: Points of a sample, for each case.
SAMPLE = {"try": 2, "load": 1, "write": 1, "alter": 1}
#: How long another is waited for that neither ends nor waits for us.
_PATIENCE = 20.0


#: What is asked of a publish alone: a transform or a replay adds steps, which the matrix crashes.
PUBLISHED = [name for name, case in CASES.items() if not case.transform and not case.replay]


class Other:
    """Somebody who goes on beside the load, as far as it lets him."""

    def __init__(self, lab: Lab, database: str, work: Callable[[], Any]) -> None:
        self._lab, self._database, self._work = lab, database, work
        self._thread: threading.Thread | None = None
        self.outcome: Any = None

    def start(self) -> None:
        """Let him work, until he has done it or waits for a lock that the load holds."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        pause = threading.Event()
        for _ in range(round(_PATIENCE / 0.05)):
            if not self._thread.is_alive() or self._waits():
                return
            pause.wait(0.05)

    def _run(self) -> None:
        try:
            self.outcome = self._work()
        except Exception as error:  # noqa: BLE001 - the test asks for it
            self.outcome = error

    def _waits(self) -> bool:
        ((waiting,),) = self._lab.sql(
            self._database,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND clock_timestamp() - query_start > interval '100 ms'",
        )
        return bool(waiting)

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if isinstance(self.outcome, Exception):
            raise self.outcome


def another_try(lab: Lab, name: str, prepared: Prepared, point: Point) -> Callable[[], Any]:
    order = lab.order(name, prepared, point.step, "source", proxied=False)
    return lambda: lab.other.run({**order, "try": 2})


def a_newer_load(lab: Lab, name: str, prepared: Prepared) -> Callable[[], Any]:
    """The run was cleared: a load of its own, from extract to publish, of what the source holds by now."""

    def run() -> Any:
        load_id, manifest = str(uuid7()), None
        for step in CASES[name].steps:
            order = lab.order(name, prepared, step, "since", proxied=False)
            for number in range(1, 4):
                answer = lab.other.run(
                    {**order, "load_id": load_id, "manifest": manifest, "try": number}
                )
                if answer is not None and "manifest" in answer:
                    break
            else:
                raise AssertionError(f"the newer load: {answer}")
            manifest = answer["manifest"]
        return manifest

    return run


def writes(lab: Lab, database: str, statements: str) -> Callable[[], bool]:
    """Whether the statements were done; not where the load holds what they need."""

    def run() -> bool:
        with psycopg.connect(lab.server.conninfo(database)) as connection:
            connection.execute("SET LOCAL lock_timeout = '300ms'")
            try:
                connection.execute(statements)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                connection.rollback()
                return False
        return True

    return run


def tried(
    lab: Lab,
    name: str,
    mode: str,
    one: Callable[[Prepared, Point], Any],
    *,
    steps: Sequence[str] = ("extract", "validate", "publish"),
) -> None:
    """Every chosen point of *steps*; *one* returns what differs."""
    prepared = lab.prepare(name)
    points = [point for point in points_of(prepared, answers_only=True) if point.step in steps]
    some, missed, wrong = chosen(points, f"{name} {mode}", SAMPLE[mode], all_of=3), 0, []
    for point in some:
        try:
            differs = one(prepared, point)
        except AssertionError as error:
            differs = {"error": str(error)}
        missed += lab.proxy.happened is None
        if differs:
            wrong.append(tell(prepared, mode, point, lab.proxy.happened, differs))
    REPORT[f"{name}, {mode}"] = [len(some), len(points), missed]
    assert not wrong, f"{len(wrong)} of {len(some)}:\n" + "\n".join(wrong[:20])
    assert missed * 10 <= max(len(some), 10), f"{missed} of {len(some)} points were not reached"


@pytest.mark.parametrize("name", PUBLISHED)
def test_another_try_of_the_step(lab: Lab, name: str) -> None:
    """A zombie and its successor: one of them does it, and what stands there was done once."""

    def one(prepared: Prepared, point: Point) -> Any:
        target = f"{prepared.stem}_target"
        other = Other(lab, target, another_try(lab, name, prepared, point))
        found, _ = lab.attempt(name, point, other.start, passes=True, afterwards=other.join)
        return differences(found, prepared.expected)

    tried(lab, name, "try", one)


# A history also keeps what the older load published before the newer one: either is right.
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "scd2"])
def test_a_newer_load_of_the_run(lab: Lab, name: str) -> None:
    """A zombie of the run before it was cleared: readers end with what the newer load has read."""
    prepared = lab.prepare(name)
    lab.fresh(prepared, "extract")
    a_newer_load(lab, name, prepared)()
    expected = lab.picture(prepared.stem)

    def one(prepared: Prepared, point: Point) -> Any:
        other = Other(lab, f"{prepared.stem}_target", a_newer_load(lab, name, prepared))
        try:
            found, _ = lab.attempt(name, point, other.start, passes=True, afterwards=other.join)
        except AssertionError as error:
            # The older load need not get through.
            if "does not succeed by retries" not in str(error):
                raise
            found = lab.picture(prepared.stem)
        differs = differences(found, expected)
        for free in ("loads", "streams", "watermark"):
            differs.pop(free, None)
        return differs

    tried(lab, name, "load", one, steps=("validate", "publish"))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.others])
def test_somebody_else_writes(lab: Lab, name: str) -> None:
    """What others write into the target is there in the end, and the load is not failed by it."""
    prepared = lab.prepare(name)
    target = f"{prepared.stem}_target"
    statements = CASES[name].others or ""
    lab.attempt(name, Point("publish", 1), lambda: None, passes=True)
    writes(lab, target, statements)()
    expected = lab.picture(prepared.stem)

    def one(prepared: Prepared, point: Point) -> Any:
        wrote = []
        found, _ = lab.attempt(
            name, point, lambda: wrote.append(writes(lab, target, statements)()), passes=True
        )
        return differences(found, expected if wrote == [True] else prepared.expected)

    tried(lab, name, "write", one)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_is_altered(lab: Lab, name: str) -> None:
    """A column is added and filled: what the load does not write keeps it, published or refused."""
    case, prepared = CASES[name], lab.prepare(name)
    target = f"{prepared.stem}_target"
    statements = f"ALTER TABLE a.t ADD note text; UPDATE a.t SET note = 'kept' WHERE {case.spared}"

    def one(prepared: Prepared, point: Point) -> Any:
        wrote = []
        try:
            found, _ = lab.attempt(
                name, point, lambda: wrote.append(writes(lab, target, statements)()), passes=True
            )
            expected = prepared.expected
        except AssertionError as error:
            if "What to do" not in str(error) or "does not succeed by retries" not in str(error):
                raise
            found, expected = lab.picture(prepared.stem), prepared.before
        if wrote == [True]:
            ((lost,),) = lab.sql(
                target, f"SELECT count(*) FROM a.t WHERE ({case.spared}) AND note IS NULL"
            )
            if lost:
                return {"note": f"{lost} rows have lost it"}
        return {"rows": True} if found["rows"] != expected["rows"] else {}

    tried(lab, name, "alter", one)
