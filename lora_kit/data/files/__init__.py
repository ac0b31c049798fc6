"""Readers of rows: JSON Lines, JSON, CSV, Parquet, saved data sets and the hub."""
