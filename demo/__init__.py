"""The demonstration on real flight data; see ``python -m demo --help``."""
