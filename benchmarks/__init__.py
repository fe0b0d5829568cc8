"""Side by side with ``psql COPY | psql COPY``: ``make bench`` or ``python -m benchmarks``."""
