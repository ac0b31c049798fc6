"""A sweep: recipes that differ in some fields, tried on one half of the items."""
