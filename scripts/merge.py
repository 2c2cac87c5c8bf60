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
    new_outputs,
    parse_config,
    read_run,
    require,
    require_unique,
    run,
)
from nestling.config.merge_methods import WITH_BASE, Recipe, Weights
from nestling.console import table
from nestling.gpu import computing_dtype

if TYPE_CHECKING:
    from nestling.merging.inputs import Inputs
    from nestling.merging.report import MergeReport
    from nestling.merging.search import Search
    from nestling.merging.target import EvaluationSet, MergeTarget, Metrics

FIRST_STEP = 0.25  # by which a search first changes one weight


@dataclass(frozen=True)
class Session:
    """The models to merge, the model that merges are loaded into, and the data that it is evaluated on.

    Args:
        target: The model that merged weights are loaded into.
        inputs: The models to merge.
        sets: Evaluation sets by kind: dev, test and other.
        base: The model to measure beside merges; None if it is not known, or has no head to score pairs with.
    """

    target: "MergeTarget"
    inputs: "Inputs"
    sets: "dict[str, list[EvaluationSet]]"
    base: str | None

    def load_model(self, model: str) -> None:
        """Load the weights of a directory or hub id into the target."""
        from nestling.merging.inputs import Inputs
        from nestling.merging.merge import merge_into
        from nestling.merging.models import open_model

        merge_into(Inputs.of([open_model(model)]), Recipe("linear", Weights((1.0,))), self.target.backbone)

    def load_merge(self, recipe: Recipe) -> "MergeReport":
        """Load the weights of a merge into the target."""
        from nestling.merging.merge import merge_into

        return merge_into(self.inputs, recipe, self.target.backbone)

    def evaluate(self, kind: str) -> "dict[str, Metrics]":
        """Metrics of the target with its present weights on the sets of a kind, by the sets' names."""
        return {each.retrieval_set.name: self.target.evaluate(each) for each in self.sets[kind]}

    def evaluate_all(self) -> "dict[str, Metrics]":
        """Metrics of the target with its present weights on all sets, by the sets' names."""
        return {name: metrics for kind in self.sets for name, metrics in self.evaluate(kind).items()}


def main() -> None:
    config = parse_config(MergeConfig, __doc__)
    with new_outputs(*((f"{name}:", getattr(config, name)) for name in ("output", "results", "plot"))):
        merge(config)


def merge(config: MergeConfig) -> None:
    """Do what the settings ask for, once they are checked."""
    models = checkpoints_of(config) if config.run is not None else config.models
    base = config.base or (read_run(Path(config.run)).model if config.run is not None else None)
    require(
        len(models) > 1 or needs_base(config),
        f"one model, {models[0]}, is no merge; give two, or --alphas, or --method task_arithmetic with a --scale",
    )
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
    session = open_session(config, models, base)
    if config.alphas:
        try_alphas(config, session)
    elif config.search is not None:
        search_weights(config, session, base)
    else:
        write_merge(config, session, recipe, base, {})


def needs_base(config: MergeConfig) -> bool:
    """Whether the method merges changes to the base."""
    return bool(config.alphas) or config.method in WITH_BASE


def checkpoints_of(config: MergeConfig) -> list[str]:
    """The step-N folders of the run that are to be merged, oldest first."""
    folder = Path(config.run or "") / "checkpoints"
    require(folder.is_dir(), f"{config.run}: no folder {folder}; expected a run of train/embed.py or train/rerank.py")
    present = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.name[5:].isdigit())
    require(bool(present), f"{folder} has no checkpoints; expected step-N folders of a run that has saved")
    missing = sorted(set(config.steps) - set(present))
    require(not missing, f"{folder} has no step {', '.join(map(str, missing))}; it has {', '.join(map(str, present))}")
    chosen = config.steps or present[-(config.last or len(present)) :]
    require(
        config.last is None or len(chosen) == config.last,
        f"last is {config.last}, and {folder} has {len(present)} checkpoints; --save_total_limit keeps more",
    )
    return [str(folder / f"step-{step}") for step in chosen]


def open_session(config: MergeConfig, models: list[str], base: str | None) -> Session:
    """Check that the models are compatible, then open them and the evaluation sets and load the target."""

    from nestling.merging.compatibility import require_compatible
    from nestling.merging.inputs import Inputs
    from nestling.merging.models import gets_head, is_checkpoint, open_model, run_settings
    from nestling.merging.target import compared_files, load_named_set, open_target, underlying_model
    from nestling.models.remote_code import trust_code

    files = {model: underlying_model(model, config.base) for model in models}
    if config.trust_remote_code:
        trust_code(*files.values(), base)
    require_compatible(compared_files(models, config.base), base)
    inputs = Inputs.of(
        [open_model(model, None if files[model] == model else config.base) for model in models],
        open_model(base) if base is not None and needs_base(config) else None,
    )
    print("to be merged:", *inputs.labels, sep="\n  ", flush=True)
    settings: dict[str, list[CandidateData]] = {kind: getattr(config, kind) for kind in ("dev", "test", "other")}
    retrieval_sets = {kind: [load_named_set(each) for each in data] for kind, data in settings.items()}
    require_unique("dev, test and other", [each.name for sets in retrieval_sets.values() for each in sets])
    print(*(each.summary for sets in retrieval_sets.values() for each in sets), sep="\n", flush=True)
    target = open_target(models[0], config.base, computing_dtype(config.precision))
    sets = {kind: list(map(target.prepare, settings[kind], retrieval_sets[kind])) for kind in settings}
    headless = base is not None and any(is_checkpoint(each) and gets_head(run_settings(each), base) for each in models)
    if headless and any(sets.values()):
        print(f"{base} has no head to score pairs with, and is not measured", flush=True)
    return Session(target, inputs, sets, None if headless else base)


def search_weights(config: MergeConfig, session: Session, base: str | None) -> None:
    """Search for the weights that score best on dev, and write that merge unless the base scores as high."""
    from nestling.merging.search import Search
    from nestling.merging.target import mean_ndcg

    count, labels = len(session.inputs.models), session.inputs.labels
    trials: list[dict[str, Any]] = []

    def score(tried: str) -> float:
        metrics = session.evaluate("dev")
        trials.append({"tried": tried, "nDCG@10": mean_ndcg(metrics), "dev": metrics})
        print(f"{len(trials)}. {tried}: nDCG@10 {trials[-1]['nDCG@10']:.4f}", flush=True)
        return float(trials[-1]["nDCG@10"])

    def try_weights(weights: tuple[float, ...]) -> float:
        session.load_merge(config.recipe(count, weights))
        return score(", ".join(f"{weight:g}" for weight in weights))

    base_score = None
    if session.base is not None:
        session.load_model(session.base)
        base_score = score(f"the base, {session.base}")
    search = Search(count, try_weights, config.search or 0)
    best = search.run(FIRST_STEP)
    print(f"weights of {', '.join(labels)}:\n{trial_table(search)}")
    if base_score is not None and best.score <= base_score:
        write_results(config, {"models": labels, "search": trials})
        raise ValueError(
            f"the base is best, with nDCG@10 {base_score:.4f} on dev, which no merge exceeds; none is written"
        )
    write_merge(config, session, config.recipe(count, best.weights), base, {"search": trials, "stage": best.stage})


def trial_table(search: "Search") -> str:
    """A table of all trials, the best first."""
    ordered = sorted(search.trials, key=lambda trial: -trial.score)
    return table(
        ["nDCG@10", "weights", "tried as"], [[t.score, format_weights(t.weights), t.stage] for t in ordered], digits=4
    )


def format_weights(weights: tuple[float, ...]) -> str:
    return " ".join(f"{weight:.3f}" for weight in weights)


def try_alphas(config: MergeConfig, session: Session) -> None:
    """Evaluate between the base (alpha 0) and the merge (1): what is gained on dev and forgotten elsewhere."""
    from nestling.merging.forgetting import plot_alphas
    from nestling.merging.target import mean_ndcg

    weights = config.recipe(len(session.inputs.models)).weights
    normalised = Weights(
        fractions(weights.models), tuple((pattern, fractions(own)) for pattern, own in weights.patterns)
    )
    kinds = [kind for kind, sets in session.sets.items() if sets]
    points: list[dict[str, Any]] = []
    for alpha in config.alphas:
        report = session.load_merge(Recipe("task_arithmetic", normalised, scale=alpha))
        results = {kind: session.evaluate(kind) for kind in kinds}
        scores = {kind: mean_ndcg(metrics) for kind, metrics in results.items()}
        points.append({"alpha": alpha, **scores, "results": results})
        print(", ".join(f"{name} {points[-1][name]:.4f}" for name in ("alpha", *kinds)), flush=True)
    print("\n".join(report.lines()))
    print(table(["alpha", *kinds], [[point[name] for name in ("alpha", *kinds)] for point in points], digits=4))
    shares = ",".join(map(str, normalised.models))
    layers = ", and in --layers shares of their sums" if normalised.patterns else ""
    print(f"to write that of an alpha: --method task_arithmetic --weights {shares} --scale ALPHA --output DIR{layers}")
    write_results(config, {"models": session.inputs.labels, "alphas": points})
    if config.plot is not None:
        plot_alphas(Path(config.plot), points, kinds)
        print(f"{config.plot} shows nDCG@10 by alpha")


def fractions(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Each weight as a fraction of their sum."""
    return tuple(weight / sum(weights) for weight in weights)


def write_merge(config: MergeConfig, session: Session, recipe: Recipe, base: str | None, extra: dict[str, Any]) -> None:
    """Merge, evaluate beside the base, and write the model directory and the results, to which `extra` is added."""
    from nestling.export.card import Card, base_name, before_and_after
    from nestling.export.gate import verdict

    assert config.output is not None
    before: dict[str, Any] = {}
    if session.base is not None and any(session.sets.values()):
        session.load_model(session.base)
        before = session.evaluate_all()
    merged = session.load_merge(recipe)
    after = session.evaluate_all()
    print("\n".join(merged.lines()))
    record = {
        "method": recipe.method,
        "models": [base_name(label) if Path(label).is_dir() else label for label in session.inputs.labels],
        "weights": list(recipe.weights.models),
        "layers": {pattern: list(weights) for pattern, weights in recipe.weights.patterns},
        "scale": recipe.scale,
        "density": recipe.density,
        "seed": recipe.seed,
    }
    scores = before_and_after(before, after)
    card = Card(base=None if base is None else base_name(base), config={"merged": record}, scores=scores)
    report = session.target.export(Path(config.output), config.dtype, card, allow_failed_gate=config.allow_failed_gate)
    print("\n".join([f"{config.output} {verdict(report)}", *(f"  {line}" for line in report.lines())]))
    rows = [[each.dataset, each.dim, each.before, each.after] for each in scores if each.metric == "nDCG@10"]
    if rows:
        print(table(["data", session.target.axis, "nDCG@10 of the base", "of the merge"], rows, digits=4))
    write_results(config, {**record, "report": asdict(merged), "base": before, "results": after, **extra})


def write_results(config: MergeConfig, content: dict[str, Any]) -> None:
    """Write the results as JSON, if the settings name a file for them."""
    from nestling.files import replace_text

    if config.results is not None:
        replace_text(Path(config.results), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
