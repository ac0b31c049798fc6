"""Checks of training data against itself, held-out rows and evaluation items."""
