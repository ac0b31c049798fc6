"""Choosing a backbone by measurements before any training."""
