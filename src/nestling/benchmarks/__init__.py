"""mteb: Nestling's directories as models, BEIR folders as tasks. Needs the extra `mteb`."""
