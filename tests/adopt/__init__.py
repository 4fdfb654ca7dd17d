"""Published models, adopted: `pipeline/adopt` against the models that it was made for."""
