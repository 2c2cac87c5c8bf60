"""What merging checkpoints of training runs gives: the last one, the best one and each merge, in and out of domain.

python scripts/bench/soups.py --runs runs/a,runs/b,runs/c --dev DIR --test DIR --other DIR --output runs/soups

Of each run, and of the runs' last checkpoints together, every method merges with even weights, and a search on dev
finds weights of its own. Dev also says which checkpoint is best. A run that was cut off goes on when the same command
is given again.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import CandidateData, parse_config, read_run, require, run
from nestling.config.merge_methods import WITH_BASE, Method, Recipe, Weights, equal_weights
from nestling.console import table
from nestling.files import replace_text
from nestling.gpu import computing_dtype

if TYPE_CHECKING:
    from nestling.merging.search import Search
    from nestling.merging.target import EvaluationSet, MergeTarget
    from nestling.records import RetrievalSet

# Those that are merges of their own: at scale 1, task arithmetic with even shares is the linear mean.
METHODS: tuple[Method, ...] = ("linear", "karcher", "ties", "dare_linear", "dare_ties", "model_stock")
DENSITY = {"ties": 0.5, "dare_linear": 0.5, "dare_ties": 0.5}
TOGETHER = "runs"  # the name of all runs' last checkpoints


@dataclass(frozen=True)
class SoupsConfig:
    """Settings of scripts/bench/soups.py.

    Args:
        runs: Folders of runs of one model that differ in their seed, with commas between.
        dev: BEIR folder whose split dev decides.
        test: BEIR folder whose split test is reported.
        other: BEIR folder of another domain, split test.
        output: A folder for the results.
        search: Merges that the search tries, of each run.
        dev_documents: Documents of dev that are searched, those that are relevant among them; all by default.
        precision: Precision of the models.
    """

    runs: list[str]
    dev: str
    test: str
    other: str
    output: str
    search: int = 20
    dev_documents: int | None = None
    precision: str = "bf16"

    def __post_init__(self) -> None:
        require(len(self.runs) > 1, "runs: give two or more, which differ in their seed")


@dataclass(frozen=True)
class Workspace:
    """What one soup after another is cooked and tasted with.

    Args:
        target: Takes the weights.
        sets: dev, test and other.
        base: The model before training.
    """

    target: "MergeTarget"
    sets: "dict[str, EvaluationSet]"
    base: str

    def serve(self, models: list[str], recipe: Recipe) -> None:
        """Give the model the weights of a merge."""
        from nestling.merging.inputs import Inputs
        from nestling.merging.merge import merge_into
        from nestling.merging.models import open_model

        based = self.base if recipe.method in WITH_BASE else None
        inputs = Inputs.of([open_model(model) for model in models], open_model(based) if based else None)
        merge_into(inputs, recipe, self.target.backbone)

    def taste(self, *names: str) -> dict[str, float]:
        """nDCG@10 on some of the sets."""
        from nestling.merging.target import mean_ndcg

        return {name: mean_ndcg({name: self.target.evaluate(self.sets[name])}) for name in names}


def main() -> None:
    config = parse_config(SoupsConfig, __doc__)
    Path(config.output).mkdir(parents=True, exist_ok=True)
    inputs = {Path(name).name: checkpoints(Path(name)) for name in config.runs}
    inputs[TOGETHER] = [models[-1] for models in inputs.values()]
    workspace = open_workspace(config, inputs[TOGETHER])
    found = {name: measured(config, workspace, name, models) for name, models in inputs.items()}
    report(found)


def checkpoints(folder: Path) -> list[str]:
    """Those of a run, oldest first."""
    found = sorted((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    require(len(found) > 1, f"{folder} has {len(found)} checkpoints; train with --save_steps and --save_total_limit 5")
    return [str(path) for path in found]


def open_workspace(config: SoupsConfig, models: list[str]) -> Workspace:

    from nestling.merging.compatibility import require_compatible
    from nestling.merging.target import load_named_set, open_target, underlying_model

    base = read_run(Path(config.runs[0])).model
    require_compatible(list(dict.fromkeys(underlying_model(model, None) for model in models)), base)
    target = open_target(models[0], None, computing_dtype(config.precision))
    folders = {"dev": (config.dev, "dev"), "test": (config.test, "test"), "other": (config.other, "test")}
    sets = {}
    for name, (folder, split) in folders.items():
        data = CandidateData(path=folder, split=split)
        read = load_named_set(data)
        if name == "dev" and config.dev_documents:
            read = thinned(read, config.dev_documents)
        print(f"{name}: {read.name}, {len(read.queries):,} queries, {len(read.documents):,} documents")
        sets[name] = target.prepare(data, read)
    return Workspace(target, sets, base)


def thinned(data: "RetrievalSet", count: int) -> "RetrievalSet":
    """The relevant documents and others, drawn, up to a number; a dev set need not be as hard as the test."""
    import numpy as np

    relevant = np.unique(np.concatenate(data.relevant))
    others = np.setdiff1d(np.arange(len(data.documents)), relevant)
    drawn = np.random.default_rng(0).permutation(others)[: max(0, count - len(relevant))]
    kept = np.sort(np.concatenate([relevant, drawn]))
    return replace(
        data,
        document_ids=[data.document_ids[row] for row in kept],
        documents=[data.documents[row] for row in kept],
        relevant=[np.searchsorted(kept, rows) for rows in data.relevant],
    )


def measured(config: SoupsConfig, workspace: Workspace, name: str, models: list[str]) -> dict[str, Any]:
    """Results of all soups of some models, by the soup's name; those of an earlier start are kept."""
    path = Path(config.output) / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for soup, cook in soups(workspace, models, config.search):
        if soup not in results:
            about = cook()
            results[soup] = {**about, **workspace.taste("test", "other")}
            replace_text(path, json.dumps(results, indent=1) + "\n")
            print(name, soup, {key: value for key, value in results[soup].items() if key != "trials"}, flush=True)
    return results


def soups(workspace: Workspace, models: list[str], budget: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The name of each soup, and what gives its weights to the model and says what they are."""

    def alone(model: str) -> dict[str, Any]:
        workspace.serve([model], Recipe("linear", Weights((1.0,))))
        return {"of": model}

    def even(members: list[str], method: Method) -> dict[str, Any]:
        workspace.serve(members, Recipe(method, shares(len(members), method), density=DENSITY.get(method, 1.0)))
        return {"of": members}

    def searched() -> dict[str, Any]:
        found = look(workspace, models, budget)
        workspace.serve(models, Recipe("karcher", Weights(found.best.weights)))
        return {"weights": found.best.weights, "dev": found.best.score, "trials": [vars(each) for each in found.trials]}

    def best() -> dict[str, Any]:
        scores = []
        for model in models:
            alone(model)
            scores.append(workspace.taste("dev")["dev"])
        return {**alone(models[scores.index(max(scores))]), "dev": scores}

    yield "base", lambda: alone(workspace.base)
    yield "last", lambda: alone(models[-1])
    yield "best on dev", best
    yield "slerp of the last two", lambda: even(models[-2:], "slerp")
    for method in METHODS:
        yield method, lambda method=method: even(models, method)  # type: ignore[misc]
    yield "searched on dev", searched


def shares(count: int, method: Method) -> Weights:
    """Even weights; for DARE, which adds up and does not divide by them, shares of 1."""
    return Weights((1 / count,) * count) if method.startswith("dare") else equal_weights(count)


def look(workspace: Workspace, models: list[str], budget: int) -> "Search":
    """Karcher means of the models, searched on dev."""
    from nestling.merging.inputs import Inputs
    from nestling.merging.merge import merge_into
    from nestling.merging.models import open_model
    from nestling.merging.search import Search

    inputs = Inputs.of([open_model(model) for model in models])

    def score(weights: tuple[float, ...]) -> float:
        merge_into(inputs, Recipe("karcher", Weights(weights)), workspace.target.backbone)
        return workspace.taste("dev")["dev"]

    found = Search(len(models), score, budget)
    found.run(0.25)
    return found


def report(found: dict[str, dict[str, Any]]) -> None:
    """Means and spreads over the runs, then the runs' last checkpoints merged."""
    runs = [results for name, results in found.items() if name != TOGETHER]
    rows = []
    for soup in runs[0]:
        of_runs = {name: [results[soup][name] for results in runs] for name in ("test", "other")}
        together = found[TOGETHER][soup]
        row = [figure for values in of_runs.values() for figure in (statistics.mean(values), max(values) - min(values))]
        rows.append([soup, *row, together["test"], together["other"]])
    heads = ["", "test", "spread", "other", "spread", "all runs: test", "other"]
    print(f"\nnDCG@10, mean of {len(runs)} runs, highest less lowest; and the last checkpoints of all runs, merged")
    print(table(heads, rows, digits=4, markdown=True))


if __name__ == "__main__":
    run(main)
