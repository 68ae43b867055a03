"""A sample order service, and a story that shows in ten seconds what the gate does."""
