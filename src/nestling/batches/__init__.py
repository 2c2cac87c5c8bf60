"""From records to token batches: sampling, prompts, collation, packing."""
