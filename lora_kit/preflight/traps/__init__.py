"""The traps of the libraries below, each with a specimen that runs into it."""
