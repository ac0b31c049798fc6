"""Test items written for this project: facts and verifiable instructions."""
