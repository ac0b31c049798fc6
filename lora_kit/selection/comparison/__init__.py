"""Comparison of trained runs: paired differences of their results, recipes, and a page."""
