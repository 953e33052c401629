"""The command line: parses arguments, calls one function of the API per verb, shows its result."""
