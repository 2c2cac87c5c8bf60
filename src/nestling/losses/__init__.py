"""The objectives: a readable reference, the chunked form that trains, the losses of rerankers."""
