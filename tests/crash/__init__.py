"""The crash matrix: what it tried, for the summary of the run."""

import os
import random

SEED = os.environ.get("ETL_CRASH_SEED") or str(random.SystemRandom().randrange(10**6))
REPORT: dict[str, list[int]] = {}
