"""Data sets: generation, reading, augmentation and loading, for detectors and classifiers."""
