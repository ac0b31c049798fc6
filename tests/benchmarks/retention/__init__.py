"""Ways to adapt and to keep, on the plane of gain against forgetting."""
