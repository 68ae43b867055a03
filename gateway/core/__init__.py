"""The pure part: values in, verdicts out. Standard library only; no clock, no randomness, no I/O."""
