"""Arrays, trees, dtypes, norms, hyperparameters and buckets: what everything else is made of."""
