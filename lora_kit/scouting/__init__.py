"""Choosing a backbone: what each of several does with a recipe's tasks before any training."""
