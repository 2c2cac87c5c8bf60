"""Comparison of the answers of a server with the model directory that it serves."""
