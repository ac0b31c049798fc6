"""Reports of a verdict: HTML page, Markdown, terminal table, and the file of flips."""
