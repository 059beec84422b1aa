"""Configurations: strict settings from YAML and the command line."""
