"""gate(verdict, verification) -> model card, manifest."""
