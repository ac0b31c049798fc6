"""Training data against itself, against what is held out, and against what is evaluated."""
