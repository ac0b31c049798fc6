"""Checks, memory estimates and plans that are known before step 1."""
