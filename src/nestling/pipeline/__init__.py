"""A pipeline of the scripts: what is to be done, what has been, and what changed in between."""
