"""The dial: a trained adapter's strength, picked on one half of the items, proved on the other."""
