"""Directories for servers, with their gates and cards."""
