"""Choose on a dev set which embedder to serve, and whether a reranker helps it and with what weight.

    python scripts/choose.py --data my-set --models Qwen/Qwen3-Embedding-0.6B,runs/mine/final \
        --reranker runs/reranker/final --depth 20 --output choice.json
    python scripts/evaluate.py --data my-set --model runs/mine/final --reranker runs/reranker/final --depth 20 \
        --rerank_weight choice.json

The embedder with the highest nDCG@10 is chosen; the first, the one before training, where no other is better. Its first
documents of each query, or without models those of BM25, are ordered by (1 - w) z(embedder) + w z(reranker), z being
scores standardised over them, with w = 0, 0.1, ... 1. Of the weights whose gain is sure (p at most 0.05, corrected for
their number and for the checkpoints that a run measured on this set before it wrote RUN/final, over the groups that
queries.jsonl names in metadata.group) the best is chosen; without one, no reranker.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import ChooseConfig, new_outputs, parse_config, require_dims, require_model, run
from nestling.files import replace_text
from nestling.gpu import best_device, computing_dtype, resolve_precision

if TYPE_CHECKING:
    from nestling.records import RetrievalSet
    from nestling.retrieval import Candidates
    from nestling.retrieval.choice import Choice


def main() -> None:
    config = parse_config(ChooseConfig, __doc__)
    for key, name in [*(("--models", each) for each in config.models), ("--reranker", config.reranker)]:
        if name is not None:
            require_model(name, f"{key} {name}: no such directory")
    with new_outputs(("--output", Path(config.output))):
        if config.trust_remote_code:
            from nestling.models.remote_code import trust_code

            trust_code(*config.models, config.reranker)
        for model in config.models:
            check_model(config, model)
        choice = make_choice(config)
        replace_text(Path(config.output), choice.to_json())
        print("\n".join(choice.lines()))


def check_model(config: ChooseConfig, model: str) -> None:
    """Raise ValueError, before weights are read, for a dimension or a length that is above what an embedder has."""
    from nestling.models.embedder import read_width, require_lengths

    require_lengths(model, query_max_length=config.query_max_length, document_max_length=config.document_max_length)
    require_dims(config.dims, limit=read_width(model))


def make_choice(config: ChooseConfig) -> "Choice":
    from nestling.models.reranker import Reranker
    from nestling.records import load_retrieval_set
    from nestling.retrieval import open_candidates, rerank
    from nestling.retrieval.choice import choose
    from nestling.run_files import checkpoints_measured

    data = load_retrieval_set(config.data, config.split)
    if config.models:
        measured, candidates = measure_embedders(config, data)
    else:
        measured, candidates = {}, open_candidates("bm25", data, config.depth, progress=True)
    if config.reranker is None:
        return choose(measured, data=data, depth=config.depth)
    reranker = Reranker.from_pretrained(config.reranker, **settings(config)).to(best_device())
    scores = rerank(reranker, data, candidates, instruction=config.instruction, progress=sys.stderr.isatty())
    return choose(
        measured,
        data=data,
        depth=config.depth,
        reranker=config.reranker,
        scores=scores,
        candidates=candidates,
        checkpoints=max(1, checkpoints_measured(Path(config.reranker), data.name)),
    )


def measure_embedders(config: ChooseConfig, data: "RetrievalSet") -> "tuple[dict[str, float], Candidates]":
    """nDCG@10 of each model, and the first documents of the best."""
    from nestling.retrieval.choice import best_of

    found = {model: measure_embedder(config, model, data) for model in config.models}
    measured = {model: value for model, (value, _) in found.items()}
    return measured, found[best_of(measured)][1]


def measure_embedder(config: ChooseConfig, model: str, data: "RetrievalSet") -> "tuple[float, Candidates]":
    """nDCG@10 of a model, and its first documents of each query."""
    from nestling.models.embedder import Embedder
    from nestling.retrieval import Candidates, encode_set, relevant_ranks, search_top
    from nestling.retrieval.choice import METRIC
    from nestling.retrieval.metrics import mean_metrics

    prompts: dict[str, Any] = {"query_prompt": config.query_prompt, "document_prompt": config.document_prompt}
    embedder = Embedder.from_pretrained(model, **prompts, **settings(config)).to(best_device())
    dim = config.dims[0] if config.dims else embedder.dim
    encoded = encode_set(
        embedder,
        data,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        instruction=config.instruction,
        progress=sys.stderr.isatty(),
    )
    run = search_top(encoded, data, config.depth, dim=dim)
    return mean_metrics(relevant_ranks(encoded, dim))[METRIC], Candidates.from_run(run, data, config.depth)


def settings(config: ChooseConfig) -> dict[str, Any]:
    """How models are loaded."""
    precision = computing_dtype(resolve_precision(config.precision))
    return {"precision": precision, "attn_implementation": config.attn_implementation}


if __name__ == "__main__":
    run(main)
