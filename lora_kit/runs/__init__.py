"""The run directory, its record, and the open session."""
