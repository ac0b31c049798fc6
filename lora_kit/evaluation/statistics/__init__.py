"""Intervals, tests, power and calibration: functions of arrays, nothing else."""
