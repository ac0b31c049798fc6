"""Built-in data sources, made from installed packages without a network."""
