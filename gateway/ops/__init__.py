"""For the people who run it. Subscribers of what happened; nothing is decided here."""
