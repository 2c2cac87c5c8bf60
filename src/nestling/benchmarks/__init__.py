"""mteb: our directories as its models, BEIR folders as its tasks. Needs the extra `mteb`."""
