"""Rows -> examples -> tokens and labels -> batches."""
