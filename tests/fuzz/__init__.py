"""Hostile input: entries that are no chunks, found at random and by coverage, among chunks that are."""
