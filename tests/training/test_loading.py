"""What both recipes do alike around their loop."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from nestling.batches.pair_prompts import PairTokenizer, RerankPrompt
from nestling.batches.rerank_collation import RerankCollator
from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.config import CandidateData, RerankConfig, TrainData
from nestling.records import load_records
from nestling.training.loading import load_batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_from_workers_unchanged_and_keep_no_file_open(workers: int, qwen3: Path, tmp_path: Path) -> None:
    """A file for each tensor is what torch would open: more than the usual 1024 for batches of small chunks."""
    file = tmp_path / "rows.jsonl"
    rows = [{"query": f"q{i}", "positives": [f"yes {i}"], "negatives": [f"no {i}", f"nor {i}"]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch_sampler = BatchSampler([Source(load_records(file, progress=False))], 4, RowSampler(1, 2, 0), 0)
    collator = RerankCollator(
        batch_sampler.sources,
        batch_sampler.row_sampler,
        PairTokenizer(AutoTokenizer.from_pretrained(qwen3), RerankPrompt()),
        query_max_length=8,
        document_max_length=8,
        chunk_tokens=64,
        share_prefix=True,
        padding_free=True,
    )
    batches = list(load_batches(collator, batch_sampler, range(1, 4), workers))
    plans = batch_sampler.batches(skip=1)
    for batch in batches:
        wanted = collator[next(plans)]
        assert batch.groups() == wanted.groups()
        assert (batch.pairs, batch.tokens, len(batch.chunks)) == (12, wanted.tokens, len(wanted.chunks))
        for found, expected in zip(batch.chunks, wanted.chunks, strict=True):
            for name, value in vars(expected).items():
                own = getattr(found, name)
                if isinstance(value, torch.Tensor):
                    assert own.dtype == value.dtype
                    assert torch.equal(own, value)
                    assert not own.is_shared()
                else:
                    assert own == value


def test_a_card_names_no_folders_of_a_machine() -> None:
    dev = CandidateData("/runs/me/sets/mine", candidates="/runs/me/runs/first.trec")
    config = RerankConfig(model="m", output_dir="/runs/me/o", train=[TrainData("/runs/me/a.jsonl")], dev=[dev])
    published = config.card_settings()
    assert "/runs" not in str(published)
    assert "'candidates': 'first.trec'" in str(published)
