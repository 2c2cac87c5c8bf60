"""Collectives with gradient, agreement between ranks, and the process group of a launch."""
