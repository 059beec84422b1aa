"""What the commands run, as functions for notebooks and tests: nothing here parses a command line."""
