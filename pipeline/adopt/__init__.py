"""Models that others published, made into bundles."""
