"""Inputs as people and other tools write them, each with its answer."""
