"""Is a server right? Its answers beside the numbers of the directory that it serves."""
