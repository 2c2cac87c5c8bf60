"""Mining: candidates from retrievers, rules and a judge that make negatives of them, and how to check the result."""
