"""Runs steps of loads, each in a process of its own that is forked from this one: all is imported already."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException

from airflow_etl_provider.core.errors import EtlError
from tests.crash.cases import audit_in_advance, pipeline, run_step


def child(order: dict[str, Any]) -> int:
    out = Path(order["out"])
    try:
        pipe = pipeline(order["case"], order["source"], order["target"], Path(order["store"]))
        answer = run_step(order, pipe)
    except Exception as error:  # noqa: BLE001 - whatever it is, the matrix is to show it
        known = isinstance(error, EtlError | AirflowException)
        text = str(error) if known else traceback.format_exc()
        out.write_text(json.dumps({"error": type(error).__name__, "text": text, "known": known}))
        return 1
    out.write_text(json.dumps({"manifest": answer}))
    return 0


def main() -> None:
    """An order for each line of standard input; its process id and its status for answers."""
    # What is logged must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    audit_in_advance()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                status = child(json.loads(line))
            finally:
                os._exit(status)
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    main()
