"""Evaluate arms: run a model on the items of every task, batch by batch."""
