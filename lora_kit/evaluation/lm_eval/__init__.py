"""Tasks of lm-evaluation-harness on our engine."""
