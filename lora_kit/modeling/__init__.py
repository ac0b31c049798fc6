"""Computations with a loaded model: likelihood, generation, features, linear probe."""
