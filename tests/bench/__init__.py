"""Benchmarks: speed lives here, never in a timed test."""
