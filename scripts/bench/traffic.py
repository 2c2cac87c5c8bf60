"""What a layer of Qwen3 launches and moves on a GPU, and the share of its peak that follows: counted, not measured.

    python scripts/bench/traffic.py
    python scripts/bench/traffic.py --models 0.6B --lengths 70 --compiled true

A row for each size, tuning and length of texts: as in 0.1.0, with peft's adapters; as it is now; and, with --compiled,
as torch.compile plans it (NESTLING_COMPILE=1). Launches are those of a layer and chunk, kB those of its memory traffic
for a token, in the forward and the backward pass, without products and attention that the matrix units limit. The share
of the published bfloat16 speed is that of a step whose activations are all kept, and of one that encodes twice.

No GPU takes part: operations are counted on tensors without data. Left out are the gaps between launches, embeddings,
loss, optimizer and communication.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nestling.config import parse_config, require, run
from nestling.config.costs import GpuName
from nestling.console import table

if TYPE_CHECKING:
    from nestling.costs.traffic import Traffic

LORA = {"r": 16, "alpha": 32, "dropout": 0.0}
GPUS: tuple[GpuName, ...] = ("h100", "h200")
NAMES = {"peft": "0.1.0", "plain": "now", "compiled": "compiled"}
HEADERS = [
    *(
        "model",
        "texts of",
        "layer",
        "launches",
        "backward",
        "kB a token",
        "backward",
        "of 0.1.0's launches",
        "of its kB",
    ),
    *("H100, kept", "twice", "H200, kept", "twice"),
]


@dataclass(frozen=True)
class TrafficBenchConfig:
    """Settings of scripts/bench/traffic.py.

    Args:
        models: Sizes of Qwen3.
        lengths: Tokens of a text.
        positions: Tokens of a chunk.
        compiled: Count compiled layers too, which takes ten times as long.
        markdown: Print the table in Markdown.
    """

    models: list[Literal["0.6B", "4B", "8B"]] = field(default_factory=lambda: ["0.6B", "4B", "8B"])
    lengths: list[int] = field(default_factory=lambda: [70, 512])
    positions: int = 16384
    compiled: bool = False
    markdown: bool = False

    def __post_init__(self) -> None:
        require(bool(self.models) and bool(self.lengths), "models and lengths must not be empty")
        require(min(*self.lengths, self.positions) > 0, "lengths and positions have to be above 0")


def main() -> None:
    config = parse_config(TrafficBenchConfig, __doc__)
    print(table(HEADERS, list(lines(config)), digits=3, markdown=config.markdown))


def lines(config: TrafficBenchConfig) -> Iterator[list[object]]:
    from nestling.costs.layer_traffic import layer_traffic
    from nestling.costs.model_configs import model_config_of

    for model in config.models:
        for tuning, lora in (("LoRA", LORA), ("full", None)):
            for length in config.lengths:
                kinds: list[Any] = ["peft", "plain", *(["compiled"] if config.compiled else [])]
                passes = {
                    kind: layer_traffic(
                        model_config_of(f"Qwen/Qwen3-{model}"),
                        lora=lora,
                        length=length,
                        positions=config.positions,
                        kind=kind,
                    )
                    for kind in kinds
                }
                for kind, found in passes.items():
                    yield [f"{model} {tuning}", length, NAMES[kind], *cells(found, passes["peft"])]


def cells(found: "tuple[Traffic, Traffic]", before: "tuple[Traffic, Traffic]") -> list[object]:
    """Launches, kB, the parts that they are of those before, and the shares of peak."""
    from nestling.costs.traffic import ROOFLINES

    (forward, backward), step = found, found[0] + found[1]
    step_before = before[0] + before[1]
    return [
        *(round(each.launches) for each in found),
        *(round(each.bytes / 1e3) for each in found),
        step.launches / step_before.launches,
        step.bytes / step_before.bytes,
        *(f"{ROOFLINES[name].share(forward, backward, forwards=forwards):.0%}" for name in GPUS for forwards in (1, 2)),
    ]


if __name__ == "__main__":
    run(main)
