"""Programs that answer the items in place of a model of this process."""
