"""Benchmarks: this project and others on equal inputs, in one run; `rows.ROWS` lists what is measured."""
