"""Intervals, tests, power, calibration and clusters, as pure functions of arrays."""
