"""How Great Expectations is loaded."""

from __future__ import annotations

import subprocess
import sys


def test_loading_great_expectations_is_silent_and_without_telemetry() -> None:
    """Under a log level of INFO it would announce hundreds of functions to the task log."""
    program = (
        "import logging, os; logging.basicConfig(level=logging.INFO);"
        "from airflow_etl_provider.quality import gx; gx.import_great_expectations();"
        "print(os.environ['GX_ANALYTICS_ENABLED'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("false", "")
