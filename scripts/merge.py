"""Merge models, adapters or checkpoints of a run into one model, or look for the best way to.

    python scripts/merge.py --run runs/mine --last 5 --output runs/merged
    python scripts/merge.py --models runs/a/final,runs/b/final --weights 0.7,0.3 --output runs/merged
    python scripts/merge.py --run runs/mine --search 40 --dev my-beir --test my-beir-test --output runs/merged
    python scripts/merge.py --models runs/mine/final --base BASE --alphas 0,0.25,0.5,0.75,1 --dev my-beir \
        --other another-beir --plot forgetting.png

The third tries weights on a development set and writes the best merge; the last moves from the base to the merge and
shows what is gained in the domain and lost outside it. docs/merging.md has the methods.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import (
    CandidateData,
    MergeConfig,
    parse_config,
    read_run,
    require,
    require_new,
    require_unique,
    run,
)
from nestling.config.merge_methods import WITH_BASE, Recipe, Weights
from nestling.console import table

if TYPE_CHECKING:
    from nestling.merging.inputs import Inputs
    from nestling.merging.report import MergeReport
    from nestling.merging.search import Search
    from nestling.merging.target import EvaluationSet, MergeTarget, Metrics

STEP = 0.25  # by which a search first moves a weight


@dataclass(frozen=True)
class Bench:
    """A model, what its weights can be made of, and what it is measured on.

    Args:
        target: The model whose weights are exchanged.
        inputs: What is merged.
        sets: Evaluation sets: dev, test and other.
    """

    target: "MergeTarget"
    inputs: "Inputs"
    sets: "dict[str, list[EvaluationSet]]"

    def take(self, model: str) -> None:
        """Give the model the weights of a directory or hub id."""
        from nestling.merging.inputs import Inputs
        from nestling.merging.merge import merge_into
        from nestling.merging.models import open_model

        merge_into(Inputs.of([open_model(model)]), Recipe("linear", Weights((1.0,))), self.target.backbone)

    def merge(self, recipe: Recipe) -> "MergeReport":
        """Give the model the weights of a merge."""
        from nestling.merging.merge import merge_into

        return merge_into(self.inputs, recipe, self.target.backbone)

    def measure(self, kind: str) -> "dict[str, Metrics]":
        """Metrics of the weights as they are now on some of the sets, by name."""
        return {each.retrieval_set.name: self.target.measure(each) for each in self.sets[kind]}

    def measure_all(self) -> "dict[str, Metrics]":
        return {name: each for kind in self.sets for name, each in self.measure(kind).items()}


def main() -> None:
    config = parse_config(MergeConfig, __doc__)
    for name in ("output", "results", "plot"):
        require_new(f"{name}:", getattr(config, name))
    models = checkpoints_of(config) if config.run is not None else config.models
    base = config.base or (read_run(Path(config.run)).model if config.run is not None else None)
    require(len(models) > 1 or bool(config.alphas), f"one model, {models[0]}, is no merge; give two, or --alphas")
    require(base is not None or not config.alphas, "alphas needs the --base that the models were trained from")
    recipe = config.recipe(len(models))
    if not config.alphas:
        recipe.require_models(len(models), base=base is not None and needs_base(config))
    require(
        config.search is None or config.search >= len(models),
        f"search is {config.search}, fewer than the {len(models)} models, each of which is tried alone",
    )
    if config.plot is not None:
        from nestling.merging.forgetting import require_plot_format

        require_plot_format(Path(config.plot))
    bench = open_bench(config, models, base)
    if config.alphas:
        forgetting(config, bench)
    elif config.search is not None:
        search(config, bench, base)
    else:
        write_merge(config, bench, recipe, base, {})


def needs_base(config: MergeConfig) -> bool:
    """Whether changes to the base are merged."""
    return bool(config.alphas) or config.method in WITH_BASE


def checkpoints_of(config: MergeConfig) -> list[str]:
    """Step folders of the run, oldest first."""
    folder = Path(config.run or "") / "checkpoints"
    require(folder.is_dir(), f"{config.run}: no folder {folder}; expected a run of train/embed.py or train/rerank.py")
    present = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.name[5:].isdigit())
    missing = sorted(set(config.steps) - set(present))
    require(not missing, f"{folder} has no step {', '.join(map(str, missing))}; it has {', '.join(map(str, present))}")
    chosen = config.steps or present[-(config.last or len(present)) :]
    require(
        config.last is None or len(chosen) == config.last,
        f"last is {config.last}, and {folder} has {len(present)} checkpoints; --save_total_limit keeps more",
    )
    return [str(folder / f"step-{step}") for step in chosen]


def open_bench(config: MergeConfig, models: list[str], base: str | None) -> Bench:
    """Check that the models belong together, before any is loaded, and open everything."""
    import torch

    from nestling.merging.compatibility import require_compatible
    from nestling.merging.inputs import Inputs
    from nestling.merging.models import open_model
    from nestling.merging.target import load_named_set, open_target, underlying_model

    files = {model: underlying_model(model, config.base) for model in models}
    require_compatible(list(dict.fromkeys(files.values())), base)
    inputs = Inputs.of(
        [open_model(model, None if files[model] == model else config.base) for model in models],
        open_model(base) if base is not None and needs_base(config) else None,
    )
    print("to be merged:", *inputs.labels, sep="\n  ", flush=True)
    given: dict[str, list[CandidateData]] = {kind: getattr(config, kind) for kind in ("dev", "test", "other")}
    read = {kind: [load_named_set(each) for each in data] for kind, data in given.items()}
    require_unique("dev, test and other", [each.name for sets in read.values() for each in sets])
    print(*(each.summary for sets in read.values() for each in sets), sep="\n", flush=True)
    target = open_target(models[0], config.base, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    sets = {kind: list(map(target.open, given[kind], read[kind])) for kind in given}
    return Bench(target, inputs, sets)


def search(config: MergeConfig, bench: Bench, base: str | None) -> None:
    """Try weights on dev, then publish the best."""
    from nestling.merging.search import Search
    from nestling.merging.target import mean_ndcg

    count, labels = len(bench.inputs.models), bench.inputs.labels
    trials: list[dict[str, Any]] = []

    def measured(what: str) -> float:
        found = bench.measure("dev")
        trials.append({"tried": what, "nDCG@10": mean_ndcg(found), "dev": found})
        print(f"{len(trials)}. {what}: nDCG@10 {trials[-1]['nDCG@10']:.4f}", flush=True)
        return float(trials[-1]["nDCG@10"])

    def try_weights(weights: tuple[float, ...]) -> float:
        bench.merge(config.recipe(count, weights))
        return measured(", ".join(f"{weight:g}" for weight in weights))

    of_base = None
    if base is not None:
        bench.take(base)
        of_base = measured(f"the base, {base}")
    found = Search(count, try_weights, config.search or 0)
    best = found.run(STEP)
    print(f"weights of {', '.join(labels)}:\n{trial_table(found)}")
    if of_base is not None and best.score <= of_base:
        write_results(config, {"models": labels, "search": trials})
        raise ValueError(
            f"the base is best, with nDCG@10 {of_base:.4f} on dev, which no merge exceeds; none is written"
        )
    write_merge(config, bench, config.recipe(count, best.weights), base, {"search": trials, "stage": best.stage})


def trial_table(found: "Search") -> str:
    """All that was tried, the best first."""
    ordered = sorted(found.trials, key=lambda trial: -trial.score)
    return table(["nDCG@10", "weights", "tried as"], [[t.score, shown(t.weights), t.stage] for t in ordered], digits=4)


def shown(weights: tuple[float, ...]) -> str:
    return " ".join(f"{weight:.3f}" for weight in weights)


def forgetting(config: MergeConfig, bench: Bench) -> None:
    """Move from the base to the merge: what is gained on dev and lost elsewhere."""
    from nestling.merging.forgetting import plot_alphas
    from nestling.merging.target import mean_ndcg

    means = config.recipe(len(bench.inputs.models)).weights
    shares = Weights(share(means.models), tuple((pattern, share(own)) for pattern, own in means.patterns))
    kinds = [kind for kind, sets in bench.sets.items() if sets]
    found: list[dict[str, Any]] = []
    for alpha in config.alphas:
        report = bench.merge(Recipe("task_arithmetic", shares, scale=alpha))
        results = {kind: bench.measure(kind) for kind in kinds}
        found.append({"alpha": alpha, **{kind: mean_ndcg(each) for kind, each in results.items()}, "results": results})
        print(", ".join(f"{name} {found[-1][name]:.4f}" for name in ("alpha", *kinds)), flush=True)
    print("\n".join(report.lines()))
    print(table(["alpha", *kinds], [[each[name] for name in ("alpha", *kinds)] for each in found], digits=4))
    write_results(config, {"models": bench.inputs.labels, "alphas": found})
    if config.plot is not None:
        plot_alphas(Path(config.plot), found, kinds)
        print(f"{config.plot} shows nDCG@10 by alpha")


def share(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Of each in their sum."""
    return tuple(weight / sum(weights) for weight in weights)


def write_merge(config: MergeConfig, bench: Bench, recipe: Recipe, base: str | None, more: dict[str, Any]) -> None:
    """Merge, measure beside the base, and write the directory, which its gates must pass."""
    from nestling.export.card import Card, base_name, before_and_after

    assert config.output is not None
    before: dict[str, Any] = {}
    if base is not None and any(bench.sets.values()):
        bench.take(base)
        before = bench.measure_all()
    merged = bench.merge(recipe)
    after = bench.measure_all()
    print("\n".join(merged.lines()))
    record = {
        "method": recipe.method,
        "models": [base_name(label) if Path(label).is_dir() else label for label in bench.inputs.labels],
        "weights": list(recipe.weights.models),
        "layers": {pattern: list(weights) for pattern, weights in recipe.weights.patterns},
        "scale": recipe.scale,
        "density": recipe.density,
        "seed": recipe.seed,
    }
    scores = before_and_after(before, after)
    card = Card(base=None if base is None else base_name(base), config={"merged": record}, scores=scores)
    report = bench.target.export(Path(config.output), config.dtype, card)
    print("\n".join([f"{config.output} passed the parity gate", *(f"  {line}" for line in report.lines())]))
    rows = [[each.dataset, each.dim, each.before, each.after] for each in scores if each.metric == "nDCG@10"]
    if rows:
        print(table(["data", bench.target.axis, "nDCG@10 of the base", "of the merge"], rows, digits=4))
    write_results(config, {**record, "report": asdict(merged), "base": before, "results": after, **more})


def write_results(config: MergeConfig, content: dict[str, Any]) -> None:
    from nestling.files import replace_text

    if config.results is not None:
        replace_text(Path(config.results), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
