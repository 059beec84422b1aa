"""What the commands run: functions that a notebook or a test calls without a command line."""
