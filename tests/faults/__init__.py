"""The promise when things break: real processes, and a wire that does as it is told."""
