"""Version of this package, also known in a checkout that is not installed."""

__version__ = "0.1.0"
