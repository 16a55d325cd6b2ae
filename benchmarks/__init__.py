"""Measurements: each is `python -m benchmarks.NAME`, prints a table and, with --json, ends with one line of JSON."""
