"""PEFT adapters: configuration, attaching, initialization, coverage, saving."""
