"""Known traps of the underlying libraries, each reproduced on a small specimen."""
