"""One HTML page of runs and results, without scripts, that loads nothing."""
