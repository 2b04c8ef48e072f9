"""The client of Pipeline Engine's HTTP API."""

__all__ = ["__version__"]

__version__ = "0.3.0"
