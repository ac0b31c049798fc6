"""Intervals, tests, power, calibration and clusters: functions of arrays, nothing else."""
