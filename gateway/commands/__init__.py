"""The words of the command line, one module each. `cli` puts them together; `speaking` has what they share."""
