"""Features of a head that do not tell the training rows from texts of a target domain."""
