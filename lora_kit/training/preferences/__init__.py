"""Objectives trained on units: preferences, rated answers, rewards, embeddings, GRPO, SDFT."""
