"""Pipeline Engine: a resident daemon that runs pipelines of local and remote AI steps."""

__version__ = "0.3.0"
