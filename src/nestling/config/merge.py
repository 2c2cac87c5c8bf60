"""Settings of scripts/merge.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_unique
from nestling.config.datasets import CandidateData
from nestling.config.merge_methods import WITH_BASE, Method, Recipe, Weights, default_method, equal_weights


@dataclass(frozen=True)
class LayerWeights:
    """Weights of some tensors.

    Args:
        pattern: Regular expression to find anywhere in a tensor's name; the first that matches counts.
        weights: One number for each model.
    """

    pattern: str
    weights: list[float]


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge models, adapters or checkpoints of a run into one model, or look for the best way to.

    Args:
        output: Folder of the merged model; must not exist; none is written with alphas.
        models: Directories or hub ids of models, folders of peft adapters, step-N folders; with commas between.
        run: Folder of a run, whose checkpoints are merged.
        last: Merge this many of the run's newest checkpoints; by default all.
        steps: Merge the checkpoints of these steps of the run.
        base: Model that all were trained from, or where it is now; by default what run or adapters name.
        trust_remote_code: Run the code that comes with the models.
        method: Method of merging; by default slerp for two models and karcher for more.
        weights: One number for each model; by default all the same.
        layers: Other weights for tensors whose names match a pattern.
        scale: For task arithmetic, TIES and DARE: scale of the change to the base.
        density: For TIES and DARE: share of each model's changes that is kept.
        seed: Seed of DARE's masks.
        dtype: Type of the written weights; by default the base's own.
        allow_failed_gate: Write a directory that fails its parity gate too; its model card says so.
        search: Try up to this many weights on dev, each model alone among them, and write the best.
        alphas: Points to try between the base (0) and the merged model (1).
        dev: Retrieval sets that decide a search by nDCG@10; on the command line also paths with commas between.
        test: Retrieval sets that the result is reported on.
        other: Retrieval sets of another domain, which show what is forgotten and decide nothing.
        precision: Type of the computation when models are measured; auto is bf16 on a GPU and fp32 on a CPU.
        results: JSON file for everything that was measured; must not exist.
        plot: Picture (png, svg or pdf) of the results at alphas; must not exist.
    """

    output: str | None = None
    models: list[str] = field(default_factory=list)
    run: str | None = None
    last: int | None = None
    steps: list[int] = field(default_factory=list)
    base: str | None = None
    method: Method | None = None
    weights: list[float] = field(default_factory=list)
    layers: list[LayerWeights] = field(default_factory=list)
    scale: float = 1.0
    density: float = 1.0
    seed: int = 42
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    allow_failed_gate: bool = False
    search: int | None = None
    alphas: list[float] = field(default_factory=list)
    dev: list[CandidateData] = field(default_factory=list)
    test: list[CandidateData] = field(default_factory=list)
    other: list[CandidateData] = field(default_factory=list)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    results: str | None = None
    plot: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(bool(self.models) != (self.run is not None), "give either --models or --run, a run's folder")
        require(len(set(self.models)) == len(self.models), "models: one is given twice")
        require(self.run is not None or not (self.last or self.steps), "last and steps are of a --run's checkpoints")
        require(self.last is None or not self.steps, "give --last or --steps, not both")
        require(self.last is None or self.last >= 1, f"last is {self.last}, expected at least 1")
        require((self.output is None) == bool(self.alphas), "give an --output; --alphas writes no model and takes none")
        require(self.search is None or bool(self.dev), "search needs --dev, which decides")
        require(
            self.search is None or not (self.weights or self.layers or self.alphas),
            "search finds the weights; leave weights, layers and alphas away",
        )
        require(self.search is None or self.method not in WITH_BASE, f"search takes a mean, and {self.method} is none")
        require(bool(self.dev) or not self.alphas, "alphas needs --dev, to try them on")
        require(not self.alphas or self.method is None, "alphas moves along the changes to the base; it has no method")
        require(all(0 <= each <= 1.5 for each in self.alphas), f"alphas: {self.alphas}, expected 0 (the base) to 1.5")
        require(self.plot is None or bool(self.alphas), "plot is of --alphas")
        for name in ("dev", "test", "other"):
            require_unique(name, [each.name or each.path for each in getattr(self, name)])

    def recipe(self, models: int, weights: tuple[float, ...] | None = None) -> Recipe:
        """How so many models are merged; with weights of a search in place of those that are set.

        Raises:
            ValueError: The settings are not for so many.
        """
        chosen = Weights(
            weights or tuple(self.weights) or equal_weights(models).models,
            tuple((each.pattern, tuple(each.weights)) for each in self.layers),
        )
        return Recipe(self.method or default_method(models), chosen, self.scale, self.density, self.seed)
