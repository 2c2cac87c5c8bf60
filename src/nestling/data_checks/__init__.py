"""Checks of training data (duplicates, contamination, labels, lengths) and a cleaned copy."""
