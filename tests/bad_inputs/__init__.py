"""Inputs as people and other tools write them, each with the answer that its command has to give."""
