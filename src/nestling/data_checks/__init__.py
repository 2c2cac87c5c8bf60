"""What is wrong with training data, and a copy without it: duplicates, leaks from evaluation sets, labels, lengths."""
