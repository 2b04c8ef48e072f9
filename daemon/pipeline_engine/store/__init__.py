"""Where jobs, their events and their checkpoints are kept."""
