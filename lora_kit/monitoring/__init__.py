"""Texts that a released adapter meets, against those that it was trained and judged on."""
