"""Descriptions of saved heads, a file for each kind: statistics of the training rows."""
