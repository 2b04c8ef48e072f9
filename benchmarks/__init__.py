"""Measures the daemon against its baselines, and shows that it loses nothing. See `make bench` and `make chaos`."""
