"""An ONNX file of an encoder's reranker, as optimum writes it, compared with the directory that it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.config import require
from nestling.export.reranker_expectation import PROBE_DOCUMENT, PROBE_QUERY, Pair, probe_pairs
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.scoring import Group
from nestling.retrieval.metrics import Floats

MODEL = "model.onnx"


@dataclass(frozen=True)
class OnnxReport:
    """How an ONNX file's logits compare with those of the directory.

    Attributes:
        pairs: Number of pairs that were compared, one by one and all together.
        difference: The largest difference of a logit.
        largest: The largest logit of the directory, by absolute value.
    """

    pairs: int
    difference: float
    largest: float

    def line(self) -> str:
        return (
            f"{self.pairs} pairs, alone and in one batch: logits of up to {self.largest:.3g} differ by at most "
            f"{self.difference:.2g}"
        )


class OnnxReranker:
    """The file `model.onnx` of a directory and the tokenizer beside it, on the CPU.

    Args:
        directory: The directory.
        max_length: Tokens of a pair.

    Raises:
        ValueError: There is no such file, or it has no output `logits`.
    """

    def __init__(self, directory: str, max_length: int) -> None:
        import onnxruntime

        path = Path(directory) / MODEL
        require(path.is_file(), f"--onnx {directory}: no {MODEL} in it; write it with optimum-cli export onnx")
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        outputs = [each.name for each in self.session.get_outputs()]
        require("logits" in outputs, f"{path} answers {', '.join(outputs)}; convert with --task text-classification")
        self.tokenizer = load_tokenizer(directory)
        self.max_length = max_length

    def logits(self, pairs: Sequence[Pair]) -> Floats:
        """[n] float64: logits of n pairs in one padded batch, cut as the servers of ONNX files cut them."""
        queries, documents = zip(*pairs, strict=True)
        batch: Any = self.tokenizer(
            list(queries),
            list(documents),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="np",
        )
        fed = {name: np.asarray(batch[name], dtype=np.int64) for name in self.inputs}
        found: Floats = self.session.run(["logits"], fed)[0][:, 0].astype(np.float64)
        return found


def compare_onnx(model: str, onnx: str) -> OnnxReport:
    """Compare the logits of short, long, Chinese and code pairs.

    Raises:
        ValueError: The directory holds no encoder's reranker, or the ONNX file cannot be read.
    """
    reranker = EncoderReranker.from_pretrained(model)
    converted = OnnxReranker(onnx, reranker.max_length)
    before = reranker.pairs.before_query()
    pairs = [
        pair for pair in [*probe_pairs(8, 32), *probe_pairs(PROBE_QUERY, PROBE_DOCUMENT)] if is_whole(reranker, pair)
    ]
    written = [(before + query, document) for query, document in pairs]
    expected = directory_logits(reranker, pairs)
    alone = np.concatenate([converted.logits([pair]) for pair in written])
    difference = max(float(np.abs(found - expected).max()) for found in (alone, converted.logits(written)))
    return OnnxReport(len(pairs), difference, float(np.abs(expected).max()))


def is_whole(reranker: EncoderReranker, pair: Pair) -> bool:
    """Whether nothing of a pair is cut: we cut documents first, servers the longer text."""
    settings, pairs = reranker.settings, reranker.pairs
    texts = (pairs.before_query() + pair[0], pair[1])
    query, document = (len(pairs.backend.encode(text, add_special_tokens=False)) for text in texts)
    within = query <= settings.query_max_length and document <= settings.document_max_length
    return within and query + document + pairs.backend.num_special_tokens_to_add(is_pair=True) <= reranker.max_length


def directory_logits(reranker: EncoderReranker, pairs: Sequence[Pair]) -> Floats:
    """[n] float64: the same of the directory, in float32."""
    found: Floats = np.concatenate(
        [each.double().numpy() for each in reranker.logits([Group(q, [d]) for q, d in pairs])]
    )
    return found
