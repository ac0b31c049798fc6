"""The arms of an evaluation: how each model or baseline that answers the items is loaded."""
