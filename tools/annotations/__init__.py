"""Annotations of data sets: one validated reader, and converters from the formats of annotation tools."""
