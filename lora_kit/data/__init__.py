"""Data pipeline: rows -> examples -> tokens and labels -> batches."""
