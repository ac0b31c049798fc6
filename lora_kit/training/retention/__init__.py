"""Ways to keep what the base knew while something else is learned."""
