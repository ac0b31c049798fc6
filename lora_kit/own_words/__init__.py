"""What the base says itself before it is trained: rows of its own, and answers in its words."""
