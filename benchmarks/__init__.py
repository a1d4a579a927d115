"""Measurements. Each is a program of its own and writes a table to `benchmarks/results`."""
