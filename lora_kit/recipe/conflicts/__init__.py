"""Rules between fields, by the section that they are about."""
