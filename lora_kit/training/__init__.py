"""Training: trainer, objectives and what is seen of them."""
