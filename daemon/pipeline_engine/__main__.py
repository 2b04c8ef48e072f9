"""`python -m pipeline_engine`: the command line."""

from pipeline_engine.cli import main

main()
