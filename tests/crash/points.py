"""Which points of a load are tried."""

from __future__ import annotations

import os
import random
from typing import Any

from tests.crash import SEED
from tests.crash.lab import Point, Prepared
from tests.crash.proxy import is_answer

EVERYTHING = os.environ.get("ETL_CRASH") == "all"
#: How many times the sample.
TIMES = 1 if EVERYTHING else int(os.environ.get("ETL_CRASH", "1"))


def points_of(prepared: Prepared, *, answers_only: bool = False) -> list[Point]:
    """Every event of every step; or those after which a server has done something."""
    return [
        Point(step, at)
        for step, events in prepared.events.items()
        for at, event in enumerate(events, start=1)
        if is_answer(event) or not answers_only
    ]


def chosen(points: list[Point], what: str, sample: int, *, all_of: int = 1) -> list[Point]:
    """All of *points*, or a sample that the seed decides.

    :param all_of: one in so many is all that is tried of them.
    """
    size = len(points) // all_of if EVERYTHING else min(len(points), sample * TIMES)
    if size == len(points):
        return points
    return random.Random(f"{SEED} {what}").sample(points, size)


def tell(
    prepared: Prepared, mode: str, point: Point, happened: str | None, differs: dict[str, Any]
) -> str:
    count = len(prepared.events[point.step])
    return f"{mode} at {point.at} of {count} of {point.step} (ETL_CRASH_SEED={SEED}), {happened}: {differs}"
