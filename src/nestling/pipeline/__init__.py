"""A pipeline of scripts that runs only the steps whose settings or inputs have changed."""
