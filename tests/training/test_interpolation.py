"""Weights between the base's and the trained ones: exact at both ends, and chosen by dev."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from nestling.checkpoint.state import trainable_tensors
from nestling.config import EmbedConfig, TrainData
from nestling.models.adapter_merging import lora_delta
from nestling.run_files import Exported, Results, evaluation_of_final, read_exported, write_exported
from nestling.training.interpolation import Interpolation, choose_share, interpolate
from nestling.training.models import load_embedder, untrained_tensors
from tiny import tiny_bert, tiny_qwen3
from tiny_modules import dense, with_modules


def scores(full: float, small: float) -> Results:
    return {"dev": {64: {"nDCG@10": full}, 32: {"nDCG@10": small}}}


def chosen(by_share: dict[float, Results], fixed: float | None = None) -> tuple[float, list[float], Interpolation]:
    """The share that is chosen, those that were measured on the way, and what was found; the model is one weight."""
    model, measured = nn.Linear(1, 1, bias=False), []
    with torch.no_grad():
        model.weight.fill_(10.0)
    base = {"weight": torch.full((1, 1), 2.0)}

    def measure(share: float) -> Results:
        measured.append(share)
        torch.testing.assert_close(model.weight.item(), 2 + share * 8)
        return by_share[share]

    found = choose_share(model, base, Interpolation({0.0: by_share[0.0], 1.0: by_share[1.0]}, fixed), measure)
    assert model.weight.item() == 2 + found.chosen * 8
    return found.chosen, measured, found


def test_trained_weights_stay_where_less_of_them_is_worse() -> None:
    share, measured, found = chosen({0.0: scores(0.5, 0.3), 1.0: scores(0.7, 0.6), 0.75: scores(0.7, 0.5)})
    assert (share, measured) == (1.0, [0.75])
    assert found.lines() == [
        "share of the trained weights in final/: 1 (mean nDCG@10 on dev by share: 0: 0.4000, 0.75: 0.6000, 1: 0.6500)"
    ]


def test_less_is_measured_as_long_as_it_is_better() -> None:
    by_share = {0.0: scores(0.5, 0.3), 1.0: scores(0.7, 0.6), 0.75: scores(0.75, 0.6), 0.5: scores(0.72, 0.6)}
    assert chosen(by_share)[:2] == (0.75, [0.75, 0.5])


def test_weights_below_the_base_at_the_full_dimension_are_not_chosen() -> None:
    """The collection on which training alone took the full dimension from .791 to .770."""
    by_share = {0.0: scores(0.791, 0.4), 1.0: scores(0.770, 0.7), 0.75: scores(0.788, 0.7), 0.5: scores(0.8, 0.65)}
    share, measured, found = chosen({**by_share, 0.25: scores(0.795, 0.5)})
    assert (share, measured) == (0.5, [0.75, 0.5, 0.25])
    assert found.lines()[1] == (
        "training alone made dev worse at the full dimension: nDCG@10 0.7910 before, 0.7700 after; between them, in "
        "final/, it is 0.8000"
    )


def test_the_base_is_kept_where_nothing_beats_it() -> None:
    worse = {share: scores(0.7, 0.9) for share in (1.0, 0.75, 0.5, 0.25)}
    share, measured, found = chosen({0.0: scores(0.8, 0.1), **worse})
    assert (share, measured) == (0.0, [0.75, 0.5, 0.25])
    assert "warning: training did not beat the base on dev" in found.lines()[1]
    assert "dimension 0.8000 before, 0.7000 after; averaged over dimensions 0.4500 and 0.8000" in found.lines()[1]


def test_a_given_share_is_measured_alone_and_taken_unless_the_base_is_better() -> None:
    better = {0.0: scores(0.5, 0.3), 1.0: scores(0.7, 0.6), 0.625: scores(0.65, 0.5)}
    share, measured, found = chosen(better, 0.625)
    assert (share, measured) == (0.625, [0.625]), "the trained weights are better on dev, and are not asked for"
    (line,) = found.lines()
    assert line.startswith("share of the trained weights in final/: 0.625 (mean nDCG@10 on dev by share: 0: 0.4000, ")
    share, measured, found = chosen({**better, 0.625: scores(0.49, 0.9)}, 0.625)
    assert (share, measured) == (0.0, [0.625])
    said = "warning: a share of 0.625 did not beat the base on dev: nDCG@10 at the full dimension 0.5000 before, 0.4900"
    assert said in found.lines()[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interpolate": 1.0}, "interpolate is 1.0; expected true, false, or a share"),
        ({"interpolate": 0.0}, "interpolate is 0.0; expected true, false, or a share"),
        (
            {"interpolate": 0.7, "tuning": "qlora"},
            "a share of 0.7 needs whole weights, and those of qlora are quantised",
        ),
    ],
)
def test_shares_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbedConfig(model="m", output_dir="", train=[TrainData("x")], **settings)


@pytest.mark.parametrize(("tuning", "behind"), [("lora", False), ("lora", True), ("full", True)])
def test_shares_of_a_model_lie_between_the_weights_that_it_computes_with(
    tuning: Literal["lora", "full"], behind: bool, tmp_path: Path
) -> None:
    """Adapters, all weights, and a Dense module behind the pooling, which is trained in full with both."""
    model = tiny_bert(tmp_path / "model") if behind else tiny_qwen3(tmp_path / "model")
    if behind:
        with_modules(model, [dense(48, 32)])
    config = EmbedConfig(
        model=str(model), output_dir="", train=[TrainData("x")], tuning=tuning, precision="fp32", use_cpu=True
    )
    embedder = load_embedder(config)
    weights = effective_weights(embedder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in trainable_tensors(embedder).values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    trained = {name: tensor.clone() for name, tensor in trainable_tensors(embedder).items()}
    after, base = effective_weights(embedder), untrained_tensors(config, embedder)
    base = {name: tensor.clone() for name, tensor in base.items()}
    for share in (0.75, 0.25):
        interpolate(embedder, base, trained, share)
        for name, found in effective_weights(embedder).items():
            torch.testing.assert_close(found, torch.lerp(weights[name], after[name], share), rtol=1e-5, atol=1e-6)
    for share, expected in ((0.0, weights), (1.0, after)):
        interpolate(embedder, base, trained, share)
        for name, found in effective_weights(embedder).items():
            assert torch.equal(found, expected[name]), name


def effective_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights, adapters merged in."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            found[name] = module.base_layer.weight + lora_delta(module)
        elif not any(hasattr(each, "lora_A") for each in module.modules()) and "lora_" not in name:
            found |= {f"{name}.{each}": tensor.clone() for each, tensor in module.named_parameters(recurse=False)}
    return {name: tensor.detach() for name, tensor in found.items()}


def test_what_is_in_final_is_written_and_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "eval": {"dev": {"64": {"nDCG@10": 0.5}}}}\n')
    assert evaluation_of_final(tmp_path, 3) == {"dev": {64: {"nDCG@10": 0.5}}}
    exported = Exported(3, 0.75, {"0.75": 0.6}, {"dev": {64: {"nDCG@10": 0.6}}})
    write_exported(tmp_path, exported)
    assert read_exported(tmp_path) == exported
    assert evaluation_of_final(tmp_path, 3) == exported.results
    (tmp_path / "interpolation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"interpolation\.json: not what was written there"):
        read_exported(tmp_path)
