"""Retention methods: training that preserves the base's abilities while learning a new task."""
