"""Token counts of texts as a model reads them. Only its tokenizer and settings are loaded, no weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.batches.prompts import Prompts, TextTokenizer
from nestling.models.embedder import may_append_end, read_model_files, reads_end
from nestling.models.model_prompts import choose_prompts
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.token_model import is_causal, read_config
from nestling.records.record import Kind

TEXTS_PER_BLOCK = 1024


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of texts including the prompts and special tokens of an embedder.

    Args:
        tokenizer: Tokenizer of the embedder.
        prompts: Prompts of the embedder.
    """

    tokenizer: TextTokenizer
    prompts: Prompts

    @classmethod
    def from_pretrained(cls, model: str) -> "TokenCounter":
        """Load from a directory or hub id. Raises ValueError if it is not a model or has no fast tokenizer."""
        files = read_model_files(model)
        causal = is_causal(read_config(model, files.subfolder))
        tokenizer = load_tokenizer(model, files.subfolder)
        pooling = files.pooling or ("last" if causal else "mean")
        prompts = choose_prompts(model, decoder=causal)
        append_end = may_append_end(model, files, pooling)
        return cls(TextTokenizer(tokenizer, require_end=reads_end(pooling), append_end=append_end), prompts)

    def __call__(self, texts: Sequence[str], kind: Kind) -> np.ndarray:
        """[N] int64: tokens of each text as a query (with the default query prompt) or document, without truncation."""
        prefix = self.prompts.document if kind == "document" else self.prompts.query()
        backend = self.tokenizer.backend
        backend.no_truncation()
        counts: list[int] = []
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            block = [prefix + text for text in texts[start : start + TEXTS_PER_BLOCK]]
            counts += [len(each.ids) for each in backend.encode_batch(block)]
        return np.array(counts, dtype=np.int64)
