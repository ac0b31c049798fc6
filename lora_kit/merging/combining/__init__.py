"""Combining several adapters of one backbone into one, from their files alone."""
