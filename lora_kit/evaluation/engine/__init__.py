"""Work on arms: what a model makes of the items, batch by batch."""
