"""Data sets: making them, reading them, and feeding them to the detectors."""
