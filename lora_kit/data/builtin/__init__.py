"""Data sources that are made from installed packages, without a network."""
