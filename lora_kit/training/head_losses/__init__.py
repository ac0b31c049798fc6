"""Losses of heads that read a text, a file for each kind of target."""
