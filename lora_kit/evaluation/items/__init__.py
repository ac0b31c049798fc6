"""Built-in items: multiple-choice questions and verifiable instructions."""
