"""Compiled layers compute what plain ones do, for all shapes with a few programs, and run without a compiler too."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.backends.prepare import configure_zero, prepare
from nestling.batches.packing import Chunk, pack
from nestling.console import say_once
from nestling.gpu import COMPILE
from nestling.models.adapters import attach_lora
from nestling.models.compiled_layers import compile_layers, transformer_layers
from nestling.models.embedder import Embedder
from nestling.training.cached import ActivationBudget, cached_backward

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"  # torch's compiler asks for it, and hides the warning by itself
)
Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    say_once.cache_clear()
    no_programs_of_other_runs = functorch_config.patch(enable_autograd_cache=False)
    with torch._dynamo.config.patch(recompile_limit=8, suppress_errors=False), no_programs_of_other_runs:
        yield
    torch._dynamo.reset()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor fails, as on a machine without a compiler; tracing and what leads to inductor is as ever."""

    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("no working C++ compiler\nfound")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", fail)


def load(model: Path, *, lora: bool = False, dropout: float = 0.0) -> Embedder:
    embedder = Embedder.from_pretrained(model, dtype=torch.float32, dropout=0.0)
    if lora:
        torch.manual_seed(0)
        embedder.backbone = attach_lora(
            embedder.backbone, r=4, alpha=8, dropout=dropout, target_modules=["q_proj", "down_proj"]
        )
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:  # zeros at the start, under which A would have no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    return embedder.train()


def chunk_of(*lengths: int) -> Chunk:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 60, (len(lengths), max(lengths)), generator=generator)
    return Chunk(ids, torch.tensor(lengths), padded=min(lengths) < max(lengths))


def passes(embedder: Embedder, chunk: Chunk) -> tuple[Tensor, Tensor, Gradients]:
    """Embeddings without and with a graph, and the gradients of a loss of them."""
    with torch.no_grad():
        first = embedder(chunk)
    embedder.zero_grad()
    second = embedder(chunk, in_place=True)
    (second * torch.arange(second.numel()).view_as(second).sin()).sum().backward()
    return first, second.detach(), gradients(embedder)


def gradients(embedder: Embedder) -> Gradients:
    return {name: each.grad.clone() for name, each in embedder.named_parameters() if each.grad is not None}


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert expected.keys() == found.keys()
    one, other = (torch.cat([each[name].flatten() for name in expected]) for each in (expected, found))
    assert one.norm() > 1e-3
    assert (other - one).norm() < 1e-5 * one.norm()


def assert_same_passes(model: Path, *, lora: bool, padded: bool) -> None:
    """Of chunks of two shapes, with two programs, and one for the first layer, whose input has no gradient in LoRA."""
    plain, compiled = load(model, lora=lora), load(model, lora=lora)
    compile_layers(compiled)
    for chunk in (chunk_of(7, 9, 9) if padded else chunk_of(9, 9, 9), chunk_of(5, 5, 5, 4 if padded else 5)):
        expected, found = passes(plain, chunk), passes(compiled, chunk)
        for one, other in zip(expected[:2], found[:2], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        assert_same(found[2], expected[2])
        assert counters["stats"]["unique_graphs"] == 2 + lora


@pytest.mark.slow
def test_without_a_compiler_layers_run_as_they_are(
    qwen3: Path, no_compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_same_passes(qwen3, lora=True, padded=False)
    said = "NESTLING_COMPILE=1: torch.compile failed, so layers run without it: RuntimeError: no working C++ compiler\n"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.slow
def test_an_encoder_without_a_compiler(bert: Path, no_compiler: None) -> None:
    assert_same_passes(bert, lora=False, padded=True)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_compiled_decoders(lora: bool, qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_same_passes(qwen3, lora=lora, padded=False)
    assert "torch.compile failed" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_encoder(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_same_passes(bert, lora=False, padded=True)
    assert "torch.compile failed" not in capsys.readouterr().err


@pytest.mark.slow
def test_chunks_of_one_text_or_position_need_programs_of_their_own(qwen3: Path, no_compiler: None) -> None:
    """Three for each of four kinds of chunks, whatever their shapes."""
    embedder = load(qwen3, lora=True)
    compile_layers(embedder)
    for lengths in ([9] * 3, [1] * 3, [9], [1], [8] * 4, [30] * 2, [5] * 16, [1] * 7, [12]):
        passes(embedder, chunk_of(*lengths))
    assert counters["stats"]["unique_graphs"] <= 12
    assert not counters["recompile_limit"]


@pytest.mark.slow
def test_a_cached_step(qwen3: Path, no_compiler: None) -> None:
    """Of which some chunks are kept and others are encoded twice."""
    ids = [list(range(5, 5 + length)) for length in (5, 9, 5, 9, 9, 5)]

    def loss_of(embeddings: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(embeddings, dim=1)
        return (torch.logsumexp(unit @ unit.T / 0.1, dim=1) * torch.arange(len(unit))).mean()

    def step(embedder: Embedder) -> tuple[Tensor, Gradients]:
        backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
        loss = cached_backward(backend, pack(ids, 20, 0), loss_of, ActivationBudget(20.0, 1.0))
        return loss, gradients(embedder)

    compiled = load(qwen3, lora=True)
    compile_layers(compiled)
    (expected, wanted), (loss, found) = step(load(qwen3, lora=True)), step(compiled)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(found, wanted)


def test_saved_names_are_those_of_the_plain_model(qwen3: Path) -> None:
    compiled = load(qwen3, lora=True)
    compile_layers(compiled)
    assert compiled.state_dict().keys() == load(qwen3, lora=True).state_dict().keys()


def test_models_whose_layers_cannot_be_compiled(qwen3: Path, bert: Path) -> None:
    with pytest.raises(ValueError, match=r"NESTLING_COMPILE=1: the model has dropout of 0.25.*lora.dropout: 0"):
        compile_layers(load(qwen3, lora=True, dropout=0.25))
    with pytest.raises(ValueError, match=r"dropout of 0.1.*set dropout: 0"):
        compile_layers(Embedder.from_pretrained(bert, dtype=torch.float32, dropout=0.1))
    with pytest.raises(ValueError, match="no layers for packed texts; set attn_implementation: sdpa"):
        compile_layers(Embedder.from_pretrained(qwen3, dtype=torch.float32, attn_implementation="varlen"))
    quantised = load(qwen3)
    quantised.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(ValueError, match="no model that is held in 4 bits; use tuning: lora"):
        compile_layers(quantised)


@pytest.mark.parametrize("asked", [False, True])
def test_the_environment_asks_for_it(asked: bool, qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are compiled when they first run, and before they are wrapped or sharded."""
    monkeypatch.setenv(COMPILE, "1" if asked else "0")
    seen = []

    def wrap(model: Embedder, optimizer: torch.optim.Optimizer) -> tuple[Embedder, SimpleNamespace]:
        seen.extend(layer._compiled_call_impl is not None for layer in transformer_layers(model))
        return model, SimpleNamespace(optimizer=optimizer)

    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.NO, device=torch.device("cpu"), prepare=wrap, state=None
    )
    embedder = load(qwen3)
    prepare(accelerator, embedder, adamw(embedder, learning_rate=0.0, weight_decay=0.0), queries_per_rank=1, max_norm=0)
    assert seen == [asked, asked]


def test_zero3_gathers_weights_inside_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3}})
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    configure_zero(accelerator, 8, 1.0)
    monkeypatch.setenv(COMPILE, "1")
    with pytest.raises(ValueError, match="NESTLING_COMPILE=1 cannot compile layers that ZeRO-3 gathers; use ZeRO-2"):
        configure_zero(accelerator, 8, 1.0)
