"""The trainer: steps, objectives, retention, checkpoints and guards."""
