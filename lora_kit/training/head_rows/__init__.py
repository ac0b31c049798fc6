"""Rows of a head that reads a text, checked, weighed and added to before training."""
