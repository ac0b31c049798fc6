"""The frozen base model: its files, loading, fingerprint, attention and heads."""
