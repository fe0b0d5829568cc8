"""End the process, the server or the connections at any statement: the retry ends as if nothing had happened.

``ETL_CRASH=all`` tries every point (``make crash``), else a sample, by ``ETL_CRASH_SEED``; ``ETL_CRASH=10`` one ten
times as large.
"""

from __future__ import annotations

import pytest

from tests.crash import REPORT
from tests.crash.cases import CASES
from tests.crash.lab import Lab, Point, differences
from tests.crash.points import chosen, points_of, tell

#: Points of a sample, for each case.
SAMPLE = {"kill": 3, "cut": 4, "stop": 2}


@pytest.mark.parametrize("mode", SAMPLE)
@pytest.mark.parametrize("name", CASES)
def test_any_point(lab: Lab, name: str, mode: str) -> None:
    """What stands there in the end is what a load without a fault leaves."""

    def stop() -> None:
        lab.server.stop("immediate")
        lab.server.start()

    fault = {"kill": lab.launcher.kill, "cut": lambda: None, "stop": stop}[mode]
    prepared = lab.prepare(name)
    assert prepared.expected["loads"] == [("published", 2 if CASES[name].replay is None else 3)]
    assert prepared.expected["left behind"] == []
    # Who is killed, and a server that is stopped, are the same after an answer and before the next statement.
    points = points_of(prepared, answers_only=mode != "cut")
    some, missed, wrong = chosen(points, f"{name} {mode}", SAMPLE[mode]), 0, []
    for point in some:
        try:
            found, happened = lab.attempt(name, point, fault)
        except AssertionError as error:
            found, happened = {"error": str(error)}, lab.proxy.happened
        missed += happened is None
        if differs := differences(found, prepared.expected):
            wrong.append(tell(prepared, mode, point, happened, differs))
    REPORT[f"{name}, {mode}"] = [len(some), len(points), missed]
    assert not wrong, f"{len(wrong)} of {len(some)}:\n" + "\n".join(wrong[:20])
    assert missed * 10 <= max(len(some), 10), f"{missed} of {len(some)} points were not reached"


def test_every_step_has_points(lab: Lab) -> None:
    """The audit is crashed too, not only what comes before and after it."""
    for name in CASES:
        steps = {point.step for point in points_of(lab.prepare(name))}
        assert steps == set(CASES[name].steps)
        assert any("SELECT" in event for event in lab.prepare(name).events["validate"])
    assert isinstance(points_of(lab.prepare(name))[0], Point)
