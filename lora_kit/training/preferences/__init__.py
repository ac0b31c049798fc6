"""Objectives trained with TRL on units: preference pairs, rated answers, rewards, GRPO, SDFT."""
