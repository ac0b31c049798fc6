"""Stand-ins for machines that are not at hand: a GPU on one without."""
