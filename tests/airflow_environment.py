"""Airflow for this process: a home of its own, SQLite, no examples, lineage into a file.

Airflow reads its environment when it is first imported, so this module is imported before anything
that could import Airflow. It imports nothing of Airflow itself.
"""

from __future__ import annotations

import base64
import json
import os

from tests.scratch import scratch

HOME = scratch("airflow")
LINEAGE = HOME / "openlineage.jsonl"
DAGS = HOME / "dags"
DAGS.mkdir()

for _name in [name for name in os.environ if name.startswith(("AIRFLOW_", "OPENLINEAGE_"))]:
    del os.environ[_name]
os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD": "True",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
            {"type": "file", "log_file_path": str(LINEAGE), "append": True}
        ),
    }
)
