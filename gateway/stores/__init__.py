"""Where records are kept. Siblings that know the port and the codec, and never each other."""
