"""Merging of models, tensor by tensor, in memory that does not grow with them."""
