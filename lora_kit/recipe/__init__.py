"""The YAML recipe: its sections, the rules between them, loading and identity."""
