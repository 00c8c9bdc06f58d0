"""Any bytes at all into the protocol layer; see `python -m tests.fuzz --help`."""
