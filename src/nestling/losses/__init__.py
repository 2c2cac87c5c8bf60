"""The training objectives: contrastive (readable reference, fast chunked form), distillation, CoSENT, rerankers."""
