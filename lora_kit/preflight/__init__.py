"""What can be known before step 1."""
