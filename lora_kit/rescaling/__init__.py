"""An adapter's scale: picked on one half of the items, proved on the other."""
