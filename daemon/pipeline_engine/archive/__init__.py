"""Finished jobs in a file: what an export writes and an import reads."""
