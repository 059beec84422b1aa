"""Weights: where published files lie (catalog), what their keys are called (formats), loading them whole (load)."""
