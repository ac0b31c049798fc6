"""Training rows that the base model generates before training."""
