"""The crash matrix: what it tried, for the summary of the run."""

import os
import random

SEED = os.environ.get("ETL_CRASH_SEED") or str(random.SystemRandom().randrange(10**6))
# Where tests run in several processes, all draw the same sample.
os.environ["ETL_CRASH_SEED"] = SEED
REPORT: dict[str, list[int]] = {}
