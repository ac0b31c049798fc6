"""Objectives other than sft, trained with TRL: preference pairs, rated answers, rewards."""
