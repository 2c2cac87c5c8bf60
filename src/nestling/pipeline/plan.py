"""The steps of a pipeline, from its settings; those of each step are validated by the settings class of its script."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nestling.config import (
    CheckConfig,
    ChooseConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    MakeQueriesConfig,
    MergeConfig,
    MineConfig,
    PipelineConfig,
    ReadDocumentsConfig,
    ReportConfig,
    RerankConfig,
    SplitConfig,
    details_path,
    require,
)
from nestling.config.pipeline import EMBEDDER
from nestling.config.queries import FREE
from nestling.pipeline.heads import is_causal, scores_pairs
from nestling.pipeline.script_steps import ScriptSteps
from nestling.pipeline.section_settings import data_settings, first_dim, substitute_models, texts_of
from nestling.pipeline.serve_step import serve_step
from nestling.pipeline.step import Step


@dataclass
class LatestOutputs:
    """The latest data and models, by the steps so far.

    Args:
        records: Path and split of the records before mining.
        data: Path and split of the training data: the records, with negatives and scores after mining.
        embedder: Directory or hub id of the embedder.
        reranker: Directory or hub id of the reranker.
    """

    records: tuple[str, str]
    data: tuple[str, str]
    embedder: str | None
    reranker: str | None


class Plan:
    """The steps of a pipeline, in order.

    Args:
        config: Settings of the pipeline.
        scripts: The folder that contains scripts/ and train/, as commands name it.
    """

    def __init__(self, config: PipelineConfig, scripts: Path) -> None:
        self.config, self.folder = config, Path(config.output_dir)
        self.step = ScriptSteps(config, scripts).step
        require(
            config.reranker_model != EMBEDDER or not is_causal(str(config.embedder_model)),
            f"reranker_model: {config.embedder_model} is a causal language model, and a reranker is made of an "
            "embedder that is an encoder; name a causal reranker",
        )
        records = (config.train or "", config.train_split)
        self.latest = LatestOutputs(records, records, config.embedder_model, self.base_reranker)
        self.steps = [*self.prepare_data(), *self.train_embedder(), *self.train_reranker()]
        chosen = list(self.choose())
        self.choice = chosen[0].writes[0] if chosen else None
        self.steps += chosen
        evaluations = list(self.evaluate())
        self.results = [step.writes[0] for step in evaluations]
        self.steps += [*evaluations, *self.export(), *self.serve(), *self.report()]

    def prepare_data(self) -> Iterator[Step]:
        """The steps that read documents, synthesise queries, hold sets out, check the records and mine negatives."""
        if self.config.documents is not None:
            corpus = Path(str(self.corpus))
            given = {"output": corpus.parent, **({"model": self.latest.embedder} if self.latest.embedder else {})}
            yield self.step("documents", ReadDocumentsConfig, given, writes=[corpus], resumes=True, updates=True)
        if self.config.queries is not None:
            pairs = self.step_folder("queries") / "pairs.jsonl"
            given = {"data": self.corpus, "output": pairs}
            step = self.step("queries", MakeQueriesConfig, given, writes=[pairs], resumes=True)
            yield replace(step, journal=pairs.with_suffix(".journal.jsonl"), free=FREE)
            self.latest.records = self.latest.data = (str(pairs), "train")
        if self.config.split is not None:
            given = {**data_settings(self.latest.records), "output": self.held_out}
            yield self.step("split", SplitConfig, given, writes=[self.held_out])
            self.latest.records = self.latest.data = (str(self.held_out / "train.jsonl"), "train")
        if self.config.check is not None:
            yield self.check(self.config.check)
        if self.config.mine is not None:
            yield self.mine("mine")

    def check(self, section: Mapping[str, Any]) -> Step:
        """Check the records; with `drop` in the section, later steps use the cleaned copy."""
        report, cleaned = self.step_folder("check") / "check.html", self.step_folder("check") / "cleaned.jsonl"
        # All their splits but train: dev chooses checkpoints, and a leak there is as bad.
        sets = list(dict.fromkeys([*self.test_sets, *filter(None, [self.dev_set])]))
        given = {**data_settings(self.latest.records), **({"eval": sets} if sets else {}), "report": report}
        if "drop" not in section:
            return self.step("check", CheckConfig, given, writes=[report])
        step = self.step("check", CheckConfig, {**given, "output": cleaned}, writes=[report, cleaned])
        self.latest.records = self.latest.data = (str(cleaned), "train")
        return step

    def mine(self, name: str) -> Step:
        """Mine with the latest embedder; the values `embedder` and `reranker` in the section mean the latest models."""
        mined, audit = self.step_folder(name) / "mined.jsonl", self.step_folder(name) / "audit.html"
        latest = {"embedder": self.latest.embedder, "reranker": self.latest.reranker}
        section = {key: substitute_models(value, latest) for key, value in getattr(self.config, name).items()}
        section.setdefault("retrievers", ["bm25", *([self.latest.embedder] if self.latest.embedder else [])])
        corpus = {} if self.corpus in (None, self.latest.records[0]) else {"corpus": self.corpus}
        given = {**data_settings(self.latest.records), **corpus, "output": mined, "audit": audit}
        step = self.step(name, MineConfig, given, writes=[mined, audit], section=section, launched=True)
        self.latest.data = (str(mined), "train")
        return step

    def train_embedder(self) -> Iterator[Step]:
        """The steps that train an embedder, merge its checkpoints and mine with the result."""
        if self.config.embed is not None:
            training = self.train("embed", EmbedConfig, "train/embed.py", self.latest.embedder)
            self.latest.embedder = str(self.step_folder("embed") / "run" / "final")
            yield training
            if self.config.merge is not None:
                merge = self.merge(self.config.merge)
                last, kept = merge.settings["last"], training.settings["save_total_limit"]
                require(
                    last is None or int(str(last)) <= int(str(kept)),
                    f"merge: last is {last}, and embed keeps {kept} checkpoints; set its save_total_limit to {last}",
                )
                yield merge
        if self.config.remine is not None:
            yield self.mine("remine")

    def merge(self, section: Mapping[str, Any]) -> Step:
        """Merge the checkpoints of the embedder's run."""
        run = self.step_folder("embed") / "run"
        model, results = self.step_folder("merge") / "model", self.step_folder("merge") / "results.json"
        dev = {"dev": self.dev()} if self.dev_set and "search" in section else {}
        given = {"run": run, **dev, "output": model, "results": results}
        # Not the whole run, which has times that the merge does not depend on.
        parts = {run: [run / "checkpoints", run / "config.yaml"]}
        self.latest.embedder = str(model)
        return self.step("merge", MergeConfig, given, writes=[model, results], parts=parts)

    def train_reranker(self) -> Iterator[Step]:
        """The steps that add teacher scores to the data and train a reranker."""
        if self.config.score is not None:
            scored = self.step_folder("score") / "scored.jsonl"
            require("judge" in self.config.score, "score: set judge to a reranker or CrossEncoder")
            yield self.step("score", MineConfig, {**data_settings(self.latest.data), "output": scored}, writes=[scored])
            self.latest.data = (str(scored), "train")
        if self.config.rerank is not None:
            model = self.config.reranker_model
            base = self.latest.embedder if model == EMBEDDER else model
            # On dev as many documents are read as on test: 100 a query take a CPU longer than training does.
            depth = {key: value for key, value in (self.config.evaluate or {}).items() if key == "depth"}
            yield self.train("rerank", RerankConfig, "train/rerank.py", base, **depth)
            self.latest.reranker = str(self.step_folder("rerank") / "run" / "final")

    def train(self, name: str, cls: type, script: str, model: str | None, **of_dev: object) -> Step:
        """Train a model on the latest data; `of_dev` are more settings of its dev set."""
        run = self.step_folder(name) / "run"
        dev = {"dev": self.dev(**of_dev)} if self.dev_set else {}
        train = [dict(zip(("path", "split"), self.latest.data, strict=True))]
        # `resume` also starts a new run, so the command is the same after a kill.
        given = {"model": model, "train": train, **dev, "output_dir": run, "resume": True}
        return self.step(name, cls, given, script=script, writes=[run], resumes=True, launched=True)

    def choose(self) -> Iterator[Step]:
        """The step that chooses on the dev set between the models before and after training, with or without reranker.

        It measures as the section `evaluate` does.
        """
        models = list(dict.fromkeys(filter(None, [self.config.embedder_model, self.latest.embedder])))
        if self.dev_set is None or (len(models) < 2 and self.latest.reranker is None):
            return
        known = {each.name for each in fields(ChooseConfig)}
        section = {key: value for key, value in (self.config.evaluate or {}).items() if key in known}
        section = {**section, **first_dim(section)} if models else {**section, "dims": []}
        output = self.step_folder("choose") / "choice.json"
        of_dev = {"data": self.dev_set, "split": self.config.dev_split}
        given = {**of_dev, "models": models, "reranker": self.latest.reranker, "output": output}
        script = "scripts/choose.py"
        yield self.step("evaluate", ChooseConfig, given, name="choose", section=section, script=script, writes=[output])

    def evaluate(self) -> Iterator[Step]:
        """Evaluate BM25, each model before and after training, and both models together, before and after."""
        section = self.config.evaluate
        if section is None:
            return
        of_embedders = ("dims", "embedding_precision", *texts_of(section))
        of_reranker = {key: value for key, value in section.items() if key not in of_embedders}
        base, embedder = self.config.embedder_model, self.latest.embedder
        base_reranker, reranker = self.base_reranker, self.latest.reranker
        yield self.evaluation_step("bm25", {}, first_stage="bm25")
        if base is not None:
            yield self.evaluation_step("base", section, model=base)
        if embedder != base:
            yield self.evaluation_step("embedder", section, model=embedder)
        if base_reranker is not None:
            weight = self.weight(None, base_reranker)
            yield self.evaluation_step(
                "base-reranker", of_reranker, first_stage="bm25", reranker=base_reranker, **weight
            )
        if reranker != base_reranker:
            weight = self.weight(None, reranker)
            yield self.evaluation_step("reranker", of_reranker, first_stage="bm25", reranker=reranker, **weight)
        yield from self.evaluate_both(section, of_reranker)

    @cached_property
    def base_reranker(self) -> str | None:
        """The reranker before training; None for an encoder that gets its head there, and scores nothing before."""
        model = self.config.reranker_model
        return None if model in (None, EMBEDDER) or not scores_pairs(str(model)) else model

    def evaluate_both(self, section: Mapping[str, Any], of_reranker: Mapping[str, Any]) -> Iterator[Step]:
        """Evaluate the rerankers with the embedders, at the first of the dimensions, as their first stage."""
        of_both = {**of_reranker, **texts_of(section), **first_dim(section)}
        base = (self.config.embedder_model, self.base_reranker)
        latest = (self.latest.embedder, self.latest.reranker)
        if None not in base:
            yield self.evaluation_step("base-both", of_both, model=base[0], reranker=base[1], **self.weight(*base))
        if None not in latest and latest != base:
            yield self.evaluation_step("both", of_both, model=latest[0], reranker=latest[1], **self.weight(*latest))

    def weight(self, embedder: str | None, reranker: str | None) -> dict[str, str]:
        """The weight that dev chose for a reranker, as a setting; nothing for others than the latest models.

        Without an embedder, BM25's documents are what it was chosen on.
        """
        latest = (self.latest.embedder, self.latest.reranker)
        return {"rerank_weight": str(self.choice)} if self.choice and (embedder, reranker) == latest else {}

    def evaluation_step(self, name: str, section: Mapping[str, Any], **models: str | None) -> Step:
        """Evaluate one combination of models, which are given with what belongs to them."""
        folder = self.step_folder(f"evaluate-{name}")
        output = folder / f"{name}.json"
        given = {"data": self.test_sets, "split": self.config.test_split, **models, "output": output, "details": True}
        writes = [output, details_path(output)]
        return self.step("evaluate", EvaluateConfig, given, name=folder.name, section=section, writes=writes)

    def export(self) -> Iterator[Step]:
        """Export the trained models to embedder/ and reranker/; those that training has exported are copied."""
        section = self.config.export
        if section is None:
            return
        if self.config.embed is not None:
            yield self.copy("embedder", self.latest.embedder)
        if self.config.rerank is not None and not section:
            yield self.copy("reranker", self.latest.reranker)
        elif self.config.rerank is not None:
            output = self.folder / "reranker"
            given = {"model": self.latest.reranker, "output": output}
            step = self.step("export", ExportConfig, given, name="export-reranker", section=section, writes=[output])
            yield self.if_chosen(step, "reranker")

    def copy(self, kind: str, model: str | None) -> Step:
        """Copy a model's directory, if the dev set has chosen it."""
        source, target = Path(model or ""), self.folder / kind
        command = (("cp", "-r"), (str(source), str(target)))
        return self.if_chosen(Step(f"export-{kind}", "export", *command, {}, (source,), (target,)), kind)

    def if_chosen(self, step: Step, kind: str) -> Step:
        """The step, left out unless the dev set chooses its model; as it is where there is no dev set."""
        if self.choice is None:
            return step
        return replace(step, reads=(*step.reads, self.choice), choice=self.choice, kind=kind)

    def serve(self) -> Iterator[Step]:
        """Serve the latest models, and compare what they answer with the evaluations."""
        if self.config.serve is not None:
            step = serve_step(self, self.config.serve)
            self.results.insert(-1, step.writes[0])  # the last is the one after training
            yield step

    def report(self) -> Iterator[Step]:
        """A page about the runs and the evaluations."""
        if self.config.report is not None:
            runs = self.runs
            output = self.folder / "report.html"
            given = {
                "title": self.folder.absolute().name,
                "runs": list(map(str, runs)),
                "results": list(map(str, self.results)),
                "config_file": self.settings,
                **({"choice": self.choice} if self.choice else {}),
                "output": output,
            }
            # Of a run only the files that the page shows, since checkpoints are large.
            parts = {run: [run / name for name in ("config.yaml", "run.json", "metrics.jsonl")] for run in runs}
            parts |= {each: [each, details_path(each)] for each in self.results}
            yield self.step("report", ReportConfig, given, writes=[output], parts=parts)

    @property
    def runs(self) -> list[Path]:
        """The folders of the trainings."""
        return [self.step_folder(name) / "run" for name in ("embed", "rerank") if self.config.has(name)]

    @property
    def settings(self) -> Path:
        """The file with the settings of the pipeline."""
        return self.folder / "pipeline.yaml"

    @property
    def corpus(self) -> str | None:
        """The corpus to mine from: that of the settings, of the documents, or of records that are a BEIR folder."""
        if self.config.documents is not None:
            return str(self.step_folder("documents") / "corpus" / "corpus.jsonl")
        has_corpus = self.config.train is not None and (Path(self.config.train) / "corpus.jsonl").is_file()
        return self.config.corpus or (self.config.train if has_corpus else None)

    @property
    def held_out(self) -> Path:
        """The folder with what the section split makes of the records."""
        return self.step_folder("split") / "held-out"

    @property
    def dev_set(self) -> str | None:
        """The BEIR folder with the dev set; None without one."""
        return str(self.held_out) if self.config.splits_off("dev") else self.config.dev

    @property
    def test_sets(self) -> list[str]:
        """The BEIR folders with the test sets."""
        return [str(self.held_out)] if self.config.splits_off("test") else self.config.test

    def dev(self, **more: object) -> list[dict[str, object]]:
        """The dev set, as settings."""
        return [{"path": self.dev_set, "split": self.config.dev_split, **more}]

    def step_folder(self, name: str) -> Path:
        """The folder of a step."""
        return self.folder / "steps" / name
