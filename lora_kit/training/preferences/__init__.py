"""Objectives besides sft, through TRL: pairs, judged answers, rewards."""
