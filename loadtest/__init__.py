"""Load on real processes: an origin that counts, a storm of duplicates, the comparison with nginx."""
