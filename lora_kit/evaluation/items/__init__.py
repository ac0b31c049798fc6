"""Test items written for this project: multiple-choice questions and verifiable instructions."""
