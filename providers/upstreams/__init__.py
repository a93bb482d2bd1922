"""What engines with somebody else's upstream have in common: models, probes, keys, rate limits."""
