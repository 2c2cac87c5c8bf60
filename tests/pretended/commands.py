"""Commands of Nestling run in this process, which has the pretended device."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from nestling.batches.packing import AnyChunk
from nestling.config import EmbedConfig, RerankConfig, parse_config
from nestling.models.token_model import TokenModel
from pretended.device import NAME
from recipes import runs, test_rerank
from train import embed, rerank

DEVICE = torch.device(NAME, 0)
SHORT = ("--query_max_length", "64", "--document_max_length", "24")
FASTER = {"lora.dropout": 0.0, "use_cpu": "false"}


def trained(place: Path, output: str, *, model: str = "qwen3", status: int = 0, **more: object) -> Path:
    """The folder of a run of train/embed.py."""
    arguments = runs.arguments(place / model, place, place / output, **{**FASTER, **more})[1:]
    where = torch.device("cpu") if more.get("use_cpu") == "true" else DEVICE
    return ended(place / output, lambda: embed.main(parse_config(EmbedConfig, "")), arguments, status, where)


def trained_reranker(place: Path, output: str, **more: object) -> Path:
    """The folder of a run of train/rerank.py."""
    settings = {**FASTER, "max_steps": 2, "save_steps": 1, "eval_steps": 2, "precision": "bf16", **more}
    arguments = test_rerank.arguments(place / "reranker", place, place / output, **settings)[1:]
    return ended(place / output, lambda: rerank.main(parse_config(RerankConfig, "")), arguments, 0, DEVICE)


def ended(run: Path, main: Callable[[], None], arguments: list[str], status: int, where: torch.device) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    finish(main, *arguments, status=status, where=where)
    return run


def finish(main: Callable[[], None], *arguments: str | Path, status: int = 0, where: torch.device = DEVICE) -> str:
    """Run a command; what it printed. Models compute `where` it says, but for those that the gate loads."""
    used: Counter[torch.device] = Counter()
    hidden_states = TokenModel.hidden_states

    def counted(self: TokenModel, chunk: AnyChunk, **more: Any) -> Tensor:
        used[self.device] += 1
        return hidden_states(self, chunk, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenModel, "hidden_states", counted)
        done = runs.run_main(main, *arguments)
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-3000:]
    assert used[where] > 0, used
    return done.stdout
