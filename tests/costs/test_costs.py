"""Estimates of costs, compared with the memory and operations of real models and with the tables in the docs."""

import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, Qwen3Config

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.backends.sizes import StateFractions, full_bytes, moments_of, trained_bytes
from nestling.batches.packing import pack
from nestling.config import CostsConfig, EmbedConfig, LaunchCosts, RerankConfig, StageCosts, TrainData, parse_config
from nestling.config.training import OptimName
from nestling.costs.fake_models import FakeEmbedder, FakeModel, FakeReranker
from nestling.costs.launches import state_fractions
from nestling.costs.layer_traffic import layer_traffic
from nestling.costs.model_configs import model_config_of
from nestling.costs.operations import Workload, operations_of
from nestling.costs.recipes import CONFIGS, read_recipe
from nestling.costs.speed import share_of_peak
from nestling.costs.stage import embedder_workload, estimate_stage, reranker_workload
from nestling.costs.tables import GPUS
from nestling.costs.traffic import ROOFLINES
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.models.token_model import TokenModel
from nestling.training.cached import ActivationBudget, cached_backward
from nestling.training.memory import MemoryEstimate, activation_bytes, estimate, sample_chunk
from recipes.runs import run_main
from scripts import costs

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
ONE, FOUR = LaunchCosts(backend="one", num_processes=1), LaunchCosts(backend="ddp", num_processes=4)
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "vocab_size": 300,
    "architectures": ["Qwen3ForCausalLM"],
}


def small(**more: Any) -> Qwen3Config:
    return Qwen3Config(**{**SMALL, **more})


def real(
    *, dtype: torch.dtype, precision: torch.dtype, lora: bool, reranker: bool, attn_implementation: str
) -> TokenModel:
    """A model with weights, of the shape of `small`."""
    kind: Any = AutoModelForCausalLM if reranker else AutoModel
    backbone = kind.from_config(small(), dtype=dtype, attn_implementation=attn_implementation)
    model: TokenModel = (
        FakeReranker(backbone, precision, full_vocabulary=False) if reranker else FakeEmbedder(backbone, precision)
    )
    if lora:
        model.backbone = attach_lora(backbone, **LORA)
    return model


@pytest.mark.parametrize(
    ("precision", "gradient_checkpointing_length", "reranker", "lora", "sharded"),
    [
        (torch.float32, None, False, False, False),
        (torch.bfloat16, None, False, False, False),
        (torch.bfloat16, None, False, False, True),
        (torch.bfloat16, 0, False, False, False),
        (torch.bfloat16, None, True, False, False),
        (torch.bfloat16, None, False, True, False),
        (torch.bfloat16, 0, True, True, True),
    ],
)
def test_activations_of_a_fake_model_equal_those_of_a_real_one(
    precision: torch.dtype, gradient_checkpointing_length: int | None, reranker: bool, lora: bool, sharded: bool
) -> None:
    """The graph of a chunk, measured as training does, within 10 %; fake attention copies a little more."""
    dtype = precision if lora else torch.float32
    fake = FakeModel(
        small(),
        dtype=dtype,
        precision=precision,
        lora=LORA if lora else None,
        reranker=reranker,
        gradient_checkpointing_length=gradient_checkpointing_length,
    )
    model = real(dtype=dtype, precision=precision, lora=lora, reranker=reranker, attn_implementation="sdpa")
    if gradient_checkpointing_length is not None:
        model.checkpoint_activations_above(gradient_checkpointing_length)
    chunk = sample_chunk(48, 480, 300, CPU)
    model.train()
    with model.computing(cache=False if sharded else None):
        kept = activation_bytes(model, partial(model, in_place=True), chunk) / chunk.positions
    assert fake.bytes_per_position(48, 480, sharded=sharded) == pytest.approx(kept, rel=0.1)
    assert kept > 0


@pytest.mark.parametrize("lora", [False, True])
def test_estimate_of_a_fake_model_equals_that_of_a_real_one(lora: bool, qwen3: Path) -> None:
    model = Embedder.from_pretrained(qwen3, dtype=torch.float32)
    if lora:
        model.backbone = attach_lora(model.backbone, **LORA)
    fake = FakeModel(
        model_config_of(str(qwen3)), dtype=torch.float32, precision=torch.float32, lora=LORA if lora else None
    ).model
    found, expected = (estimate(each, StateFractions(), chunk=1.0, kept=2.0, room=3e9) for each in (fake, model))
    assert found == expected
    assert found.weights > 1e5


def test_tied_weights_of_a_reranker_are_counted_once(qwen3_base: Path) -> None:
    shape = model_config_of(str(qwen3_base))
    fake = FakeModel(shape, dtype=torch.float32, precision=torch.float32, lora=None, reranker=True).model
    assert trained_bytes(fake) == trained_bytes(Reranker.from_pretrained(qwen3_base))
    untied = FakeModel(small(tie_word_embeddings=False), dtype=torch.float32, precision=torch.float32, lora=None,
                    reranker=True).model  # fmt: skip
    tied = FakeModel(small(tie_word_embeddings=True), dtype=torch.float32, precision=torch.float32, lora=None,
                  reranker=True).model  # fmt: skip
    assert trained_bytes(untied) - trained_bytes(tied) == 4 * 300 * 64


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("Qwen/Qwen3-0.6B-Base", 596_049_920),
        ("Qwen/Qwen3-4B-Base", 4_022_468_096),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
    ],
)
def test_published_sizes(model: str, parameters: int) -> None:
    """As the language models are published."""
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(model_config_of(model))
    assert sum(each.numel() for each in causal.parameters()) == parameters


def counted(model: TokenModel, chunk: Any, *, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        encoded = model(chunk, in_place=True)
        if backward:
            encoded.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("reranker", [False, True])
def test_operations_equal_those_of_the_flop_counter(reranker: bool) -> None:
    model = real(
        dtype=torch.float32, precision=torch.float32, lora=False, reranker=reranker, attn_implementation="eager"
    )
    chunk, found = sample_chunk(48, 480, 300, CPU), operations_of(model, Workload.texts(10, 48))
    words = 2 * 10 * 64 if reranker else 0  # the two words, of which there is one difference
    assert counted(model, chunk, backward=False) == found.forward + words
    assert counted(model, chunk, backward=True) == found.forward + found.backward + 3 * words


def test_frozen_weights_need_no_gradient() -> None:
    """The first layer's input needs none either, which is 4 % of two layers."""
    model = real(dtype=torch.float32, precision=torch.float32, lora=True, reranker=False, attn_implementation="eager")
    chunk, found = sample_chunk(48, 480, 300, CPU), operations_of(model, Workload.texts(10, 48))
    assert counted(model, chunk, backward=False) == found.forward
    assert counted(model, chunk, backward=True) == pytest.approx(found.forward + found.backward, rel=0.05)


@pytest.mark.parametrize(("room", "forwards"), [(0.0, 2), (torch.inf, 1)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_passes_of_a_step(room: float, forwards: int, checkpointed: bool) -> None:
    """Chunks without room run forward twice, and once more where activations are recomputed, but for the last product
    of each layer, of which torch knows that nobody needs it."""
    model = real(dtype=torch.float32, precision=torch.float32, lora=False, reranker=False, attn_implementation="eager")
    if checkpointed:
        model.checkpoint_activations_above(0)
    batch = pack([list(range(1, 41))] * 8, 80, 0)
    backend = Plain(model, adamw(model, learning_rate=1e-3, weight_decay=0.0))
    with FlopCounterMode(display=False) as counter:
        cached_backward(backend, batch, lambda each: each.square().sum(), ActivationBudget(room, 1.0))
    found = operations_of(model, Workload.texts(8, 40))
    expected = (forwards + checkpointed) * found.forward + found.backward
    spared = 2 * 64 * 160 * 2 * 8 * 40 if checkpointed else 0
    assert counter.get_total_flops() == expected - spared


def embed_config(**more: Any) -> EmbedConfig:
    return EmbedConfig(**{"model": "m", "output_dir": "o", "train": [TrainData("a")], **more})


def test_workload_of_a_row() -> None:
    stage = StageCosts(path="x", examples=10, query_tokens=10, document_tokens=30, positives=2.5)
    row = embedder_workload(embed_config(num_negatives=3, document_max_length=20), stage)
    assert row == Workload(10 + 5.5 * 20, 10 * 10 + 5.5 * 20 * 20)  # documents are cut at 20 tokens
    settings: dict[str, Any] = {
        "model": "m",
        "output_dir": "o",
        "train": [TrainData("a")],
        "num_positives": 1,
        "num_negatives": 3,
    }
    assert reranker_workload(RerankConfig(**settings), stage) == Workload(10 + 4 * 30, 10 * 10 + 4 * 30 * 40)
    apart = RerankConfig(**settings, attn_implementation="sdpa")
    assert reranker_workload(apart, stage) == Workload(4 * 40, 4 * 40 * 40)


@pytest.mark.parametrize(
    ("backend", "room", "expected"),
    [
        ("ddp", 1e9, StateFractions(1.0, 1.0, 2.0)),
        ("zero1", 1e9, StateFractions(1.0, 1.25, 0.75)),
        ("zero2-offload", 1e9, StateFractions(1.0, 1.25, 0.0)),
        ("zero3", 1e9, StateFractions(0.25, 1.25, 0.75)),
        ("fsdp2", 1e9, StateFractions(0.25, 1.25, 0.5)),
        ("fsdp2", 0.0, StateFractions(0.25, 0.25, 0.5)),
    ],
)
def test_a_rank_of_four_holds_whole_gradients_where_they_fit(
    backend: Any, room: float, expected: StateFractions
) -> None:
    model = FakeModel(small(), dtype=torch.float32, precision=torch.float32, lora=None).model
    assert state_fractions(LaunchCosts(backend=backend, num_processes=4), model, room)[0] == expected


@pytest.mark.parametrize(
    ("optim", "dtype", "numbers"),
    [
        ("adamw_torch_fused", torch.float32, 4 + 4 + 8),
        ("adamw_bnb_8bit", torch.float32, 4 + 4 + 2 * (1 + 4 / 256)),
        ("adamw_torch_8bit", torch.bfloat16, 2 + 2 + 2 * (1 + 4 / 256)),
    ],
)
def test_state_takes_as_many_bytes_for_each_weight_as_the_optimizer_says(
    optim: OptimName, dtype: torch.dtype, numbers: float
) -> None:
    """Of a layer; token embeddings keep the dtype of the weights."""
    layer = nn.Linear(128, 512, bias=False, dtype=dtype)
    table = nn.Embedding(512, 128, dtype=dtype)
    for module, bytes_each in ((layer, numbers), (table, 4 * dtype.itemsize)):
        memory = estimate(module, StateFractions(optimizer=moments_of(module, optim)), chunk=0.0, kept=0.0, room=1e9)
        assert memory.total == pytest.approx(bytes_each * 128 * 512)


def test_an_optimizer_of_a_launch_replaces_that_of_the_recipe(recipe: StageCosts) -> None:
    file = Path(recipe.path)  # in precision fp32 weights stay float32
    file.write_text(file.read_text().replace("precision: fp32", "precision: bf16"))

    def of(optim: OptimName) -> MemoryEstimate:
        launch = LaunchCosts(backend="ddp", num_processes=2, tuning="full", optim=optim)
        return estimate_stage(recipe, launch, 1e9).memory

    whole, short, half = (of(name) for name in ("adamw_torch_fused", "adamw_bnb_8bit", "adamw_torch_8bit"))
    assert (short.weights, short.gradients) == (whole.weights, whole.gradients)
    assert 2 * half.gradients == whole.gradients
    assert 2 * half.weights == pytest.approx(whole.weights, rel=1e-2)  # a few buffers are float32
    assert whole.optimizer > short.optimizer > half.optimizer


def test_a_recipe_of_adapters_is_launched_with_all_weights(recipe: StageCosts) -> None:
    file, launch = Path(recipe.path), LaunchCosts(backend="one", num_processes=1, tuning="full")
    whole = estimate_stage(recipe, launch, 1e9)
    file.write_text(file.read_text().replace("tuning: full", "tuning: lora\nlora: {r: 4, dropout: 0.1}"))
    assert estimate_stage(recipe, launch, 1e9).memory == whole.memory


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"tuning": "lora"}, "optim: adamw_torch_8bit saves memory where all weights are trained"),
        ({"tuning": "full", "backend": "fsdp2"}, "optim: adamw_torch_8bit cannot be sharded"),
        ({"tuning": "full", "backend": "zero2"}, "optim: adamw_torch_8bit cannot be sharded"),
    ],
)
def test_an_optimizer_that_cannot_be_launched_so_is_not_estimated(
    launch: dict[str, Any], message: str, recipe: StageCosts
) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_stage(
            recipe, LaunchCosts(**{"backend": "ddp", **launch}, num_processes=2, optim="adamw_torch_8bit"), 1e9
        )


@pytest.fixture
def recipe(tmp_path: Path, qwen3: Path) -> StageCosts:
    """A stage that embeds with a tiny model."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model: {qwen3}\noutput_dir: o\ntrain: [{{path: a}}]\ntuning: full\nprecision: fp32\nbatch_size: 64\n"
        "num_negatives: 1\nnum_positives: 1\nquery_max_length: 32\ndocument_max_length: 32\nchunk_tokens: 128\n"
    )
    return StageCosts(path=str(file), script="embed", examples=640, query_tokens=16, document_tokens=32)


def test_costs_of_a_stage(recipe: StageCosts) -> None:
    found, none = estimate_stage(recipe, ONE, 1e12), estimate_stage(recipe, ONE, 0.0)
    assert (found.tokens, found.forwards, none.forwards) == (640 * 80, 1, 2)
    assert found.fits and not none.fits
    model = FakeModel(
        model_config_of(yaml_model(recipe)), dtype=torch.float32, precision=torch.float32, lora=None
    ).model
    passes = operations_of(model, Workload.texts(640, 16) + Workload.texts(1280, 32))
    assert found.operations == passes.forward + passes.backward
    assert none.operations == 2 * passes.forward + passes.backward
    assert found.gpu_hours(1e12) == pytest.approx(found.operations / 3.6e15)
    assert found.memory.weights == full_bytes([*model.parameters(), *model.buffers()])
    assert found.memory.kept == pytest.approx(found.memory.chunk / 128 * 64 * 96)


def yaml_model(stage: StageCosts) -> str:
    return Path(stage.path).read_text().split("\n")[0].removeprefix("model: ")


@pytest.mark.parametrize(("length", "forwards"), [(31, 2), (32, 1)])
def test_truncated_texts_are_as_long_as_the_limit(length: int, forwards: int, recipe: StageCosts) -> None:
    """Of 90 tokens 32 are left, of which more than `gradient_checkpointing_length` are computed twice."""
    with Path(recipe.path).open("a") as stream:
        stream.write(f"gradient_checkpointing_length: {length}\n")
    assert estimate_stage(replace(recipe, document_tokens=90), ONE, 1e12).forwards == forwards


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    for text, message in (
        ("a: [", "not valid YAML: while parsing"),
        ("- a", "expected keys with values"),
        ("", "expected keys"),
    ):
        file = tmp_path / f"{len(text)}.yaml"
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{len(text)}.yaml: {message}"):
            read_recipe(None, str(file))


def test_more_processes_keep_more_graphs(recipe: StageCosts) -> None:
    """A quarter of the batch on each, and room for half of the whole."""
    whole = estimate_stage(recipe, ONE, 1e12)
    state = whole.memory.weights + whole.memory.gradients + whole.memory.optimizer
    tokens = whole.memory.chunk / 128 * 64 * 80
    room = state + tokens  # half of what is free is half of the batch's graphs
    assert estimate_stage(recipe, ONE, room).forwards == pytest.approx(1.5)
    assert estimate_stage(recipe, FOUR, room).forwards == 1


def test_estimate_equals_what_training_prints(recipe: StageCosts, qwen3: Path) -> None:
    """Its measure of a real model on this CPU, within 10 %."""
    config = parse_config(EmbedConfig, None, ["--config", recipe.path])
    model = Embedder.from_pretrained(qwen3, dtype=torch.float32)
    model.train()
    chunk = sample_chunk(config.longest, 128, model.config.vocab_size, CPU)
    with model.computing():
        measured = activation_bytes(model, partial(model, in_place=True), chunk)
    found, expected = (
        estimate_stage(recipe, ONE, 1e12).memory,
        estimate(model, StateFractions(), chunk=measured, kept=0.0),
    )
    assert (found.weights, found.gradients, found.optimizer) == (
        expected.weights,
        expected.gradients,
        expected.optimizer,
    )
    assert found.chunk == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("change", "launch", "message"),
    [
        ({"model": "other/model"}, ONE, "model other/model: neither a directory with a config.json nor a Qwen3 model"),
        ({}, LaunchCosts(backend="ddp", num_processes=7), "batch_size is 64, which 7 processes cannot divide equally"),
        ({"documents": 1}, ONE, "recipe.yaml: documents is a setting of mining stages only"),
        ({"script": None}, ONE, "recipe.yaml: embed and rerank match its keys equally; set the script of the stage"),
        ({"script": "mine"}, ONE, "recipe.yaml, read as mine: unknown key 'model'"),
        ({"path": "none.yaml"}, ONE, "none.yaml: no such file"),
    ],
)
def test_stages_that_cannot_be_estimated(
    change: dict[str, Any], launch: LaunchCosts, message: str, recipe: StageCosts
) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_stage(replace(recipe, **change), launch, 1e12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LaunchCosts(backend="one", num_processes=2), "2 processes with backend one"),
        (lambda: LaunchCosts(backend="fsdp2", num_processes=1), "1 processes with backend fsdp2"),
        (lambda: LaunchCosts(backend="ddp", num_processes=0), "num_processes is 0, expected at least 1"),
        (lambda: StageCosts(path="x", examples=0, query_tokens=1, document_tokens=1), "x: examples is 0"),
        (lambda: CostsConfig(stages=[]), "stages is empty"),
    ],
)
def test_invalid_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_stages_that_do_not_fit_are_listed(recipe: StageCosts) -> None:
    stage = f"[{{path: {recipe.path}, script: embed, examples: 64, query_tokens: 16, document_tokens: 32}}]"
    done = run_main(costs.main, "--stages", stage, "--gpu_memory", "0.001", "--gpu", "l4")
    assert done.returncode == 0, done.stderr
    assert "1 GPU, full: 0.00 GB of 0.00 GB; weights, gradients and optimizer do not fit" in done.stdout
    assert GPUS["l4"] == 24


@pytest.mark.parametrize("gpu", ["h100", "l4"])
def test_share_of_peak_is_that_of_a_layers_traffic(gpu: Any, recipe: StageCosts) -> None:
    """For the tuning of the launch, the mean length and the forward passes of what is kept."""
    kept, none = (estimate_stage(recipe, ONE, room) for room in (1e12, 0.0))
    length = (16 * 16 + 2 * 32 * 32) / (16 + 2 * 32)
    assert kept.length == none.length == length
    shape = model_config_of(yaml_model(recipe))
    forward, backward = layer_traffic(shape, lora=None, length=round(length), positions=16384)
    roofline = ROOFLINES[gpu]
    assert share_of_peak(recipe, ONE, kept, gpu) == roofline.share(forward, backward)
    twice = roofline.share(forward, backward, forwards=2, counted=2)
    assert share_of_peak(recipe, ONE, none, gpu) == twice
    adapters = {"r": 32, "alpha": 64, "dropout": 0.0}
    forward, backward = layer_traffic(shape, lora=adapters, length=round(length), positions=16384)
    lora = replace(ONE, tuning="lora")
    assert share_of_peak(recipe, lora, kept, gpu) == roofline.share(forward, backward)


def test_hours_follow_from_the_share_unless_one_is_given(recipe: StageCosts) -> None:
    stage = f"[{{path: {recipe.path}, script: embed, examples: 64, query_tokens: 16, document_tokens: 32}}]"
    modelled, given = (run_main(costs.main, "--stages", stage, *more).stdout for more in ((), ("--mfu", "0.25")))
    assert "work, at a share by a model of its traffic of 989 teraflop a second" in modelled
    assert "work, at a share as given of 989 teraflop a second" in given
    assert re.search(r" 0\.25 +0\.00 +0\.00\n", given)
    assert not re.search(r" 0\.25 +0\.00 +0\.00\n", modelled)


COSTS = sorted((ROOT / "configs" / "costs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("matryoshka_dims: [8]", EmbedConfig),
        ("refresh: {steps: 1}", EmbedConfig),
        ("loss: {objective: listwise}", RerankConfig),
        ("dev: [{path: a, depth: 5}]", RerankConfig),
    ],
)
def test_script_is_recognised_by_its_own_keys(keys: str, expected: type, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: m\noutput_dir: o\ntrain: [{{path: a}}]\nlearning_rate: 5e-5\n{keys}\n")
    assert read_recipe(None, str(file)) == parse_config(expected, None, ["--config", str(file)])
    with file.open("a") as stream:
        stream.write("batch_sise: 4\n")
    read_recipe.cache_clear()
    with pytest.raises(ValueError, match=r"recipe\.yaml, read as \w+: unknown key 'batch_sise'; did you mean"):
        read_recipe(None, str(file))


@pytest.mark.parametrize("file", COSTS, ids=lambda file: file.stem)
def test_every_yaml_of_costs_loads(file: Path) -> None:
    config = parse_config(CostsConfig, None, ["--config", str(file)])
    for stage in config.stages:
        assert isinstance(read_recipe(stage.script, str(ROOT / stage.path)), CONFIGS[stage.script or "embed"])
        for launch in config.launches:
            name = {"one": "one-gpu", "ddp": "ddp"}.get(launch.backend, launch.backend)
            assert (ROOT / "configs" / "accelerate" / f"{name}.yaml").is_file()


TABLE = re.compile(r"(?:^\|.*\n)+", re.M)


def shown() -> list[Any]:
    """Commands of pages that print tables; the largest models take a minute."""
    found = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for line in re.findall(r"^python (scripts/costs\.py .*--markdown true)$", page.read_text("utf-8"), re.M):
            found.append(pytest.param(page, line, id=f"{page.stem} {line.split()[2]}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), shown())
def test_tables_in_docs_equal_the_output_of_the_command(
    page: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them on the page of costs, on another one that of memory."""
    monkeypatch.chdir(ROOT)
    done = run_main(costs.main, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    tables = TABLE.findall(done.stdout)
    assert len(tables) == 2
    text = page.read_text(encoding="utf-8")
    for each in tables if page.stem == "costs" else tables[:1]:
        assert each in text, f"{page.name}: run `python {command}` and copy its table"


def test_tables_are_on_both_pages() -> None:
    assert {parameter.values[0].stem for parameter in shown()} == {"costs", "distributed"}
    assert len(shown()) == 4
