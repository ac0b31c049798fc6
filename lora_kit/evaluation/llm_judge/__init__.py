"""A language model as the judge of two arms' answers."""
