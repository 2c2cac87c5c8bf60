"""Vector stores: embeddings written into them, searched, and measured beside exact search."""
