"""Tasks of lm-evaluation-harness, run by the engine of this package."""
