"""The verdict for people: a page, a text, a terminal, and the flips as a file."""
