"""From the settings of a pipeline to its steps, each checked by its script's own settings."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nestling.config import (
    CheckConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    MakeQueriesConfig,
    MergeConfig,
    MineConfig,
    PipelineConfig,
    ReportConfig,
    RerankConfig,
    details_path,
    read_section,
    require,
)
from nestling.pipeline.step import Step, files_in, flags, paths_in, resolved

# What a section must not set: the pipeline fills it in, or the step would leave nothing for the next.
FILLED = {
    "queries": ("data", "output", "dry_run"),
    "check": ("data", "split", "eval", "eval_split", "output", "report"),
    "mine": ("data", "split", "corpus", "output", "audit", "sweep"),
    "embed": ("model", "output_dir", "train", "resume", "dry_run"),
    "merge": ("models", "run", "output", "results", "alphas", "plot"),
    "remine": ("data", "split", "corpus", "output", "audit", "sweep"),
    "score": ("data", "split", "output", "retrievers", "sweep", "audit"),
    "rerank": ("model", "output_dir", "train", "resume", "dry_run"),
    "evaluate": ("data", "split", "model", "first_stage", "reranker", "output", "details", "mteb"),
    "export": ("output", "checkpoint", "adapter", "base", "model"),
    "report": ("output", "runs", "results", "config_file"),
}


@dataclass
class Latest:
    """What the steps so far have given.

    Args:
        records: The records as they are before mining, and their split.
        data: What to train on, and its split: the records, with negatives and scores once there are some.
        embedder: Directory or hub id.
        reranker: Likewise.
    """

    records: tuple[str, str]
    data: tuple[str, str]
    embedder: str | None
    reranker: str | None


class Plan:
    """The steps of a pipeline, in order.

    Args:
        config: The pipeline's settings.
        scripts: The folder that holds scripts/ and train/, as commands name it.
    """

    def __init__(self, config: PipelineConfig, scripts: Path) -> None:
        self.config, self.scripts, self.folder = config, scripts, Path(config.output_dir)
        records = (config.train or "", config.train_split)
        self.latest = Latest(records, records, config.embedder_model, config.reranker_model)
        self.steps = [*self.prepare_data(), *self.train_embedder(), *self.train_reranker()]
        evaluations = list(self.evaluate())
        self.results = [step.writes[0] for step in evaluations]
        self.steps += [*evaluations, *self.export(), *self.report()]

    def prepare_data(self) -> Iterator[Step]:
        """Make queries, look at the records, mine."""
        if self.config.queries is not None:
            pairs = self.place("queries") / "pairs.jsonl"
            given = {"data": self.config.corpus, "output": pairs}
            yield self.step("queries", MakeQueriesConfig, given, writes=[pairs], resumes=True)
            self.latest.records = self.latest.data = (str(pairs), "train")
        if self.config.check is not None:
            yield self.check(self.config.check)
        if self.config.mine is not None:
            yield self.mine("mine")

    def check(self, section: Mapping[str, Any]) -> Step:
        report, cleaned = self.place("check") / "check.html", self.place("check") / "cleaned.jsonl"
        tests = {"eval": self.config.test, "eval_split": self.config.test_split} if self.config.test else {}
        given = {**named(self.latest.records), **tests, "report": report}
        if "drop" not in section:
            return self.step("check", CheckConfig, given, writes=[report])
        step = self.step("check", CheckConfig, {**given, "output": cleaned}, writes=[report, cleaned])
        self.latest.records = self.latest.data = (str(cleaned), "train")
        return step

    def mine(self, name: str) -> Step:
        """Mine with the latest embedder; the words embedder and reranker in the section stand for the latest."""
        mined, audit = self.place(name) / "mined.jsonl", self.place(name) / "audit.html"
        latest = {"embedder": self.latest.embedder, "reranker": self.latest.reranker}
        section = {key: replaced(value, latest) for key, value in getattr(self.config, name).items()}
        section.setdefault("retrievers", ["bm25", *([self.latest.embedder] if self.latest.embedder else [])])
        corpus = {} if self.corpus in (None, self.latest.records[0]) else {"corpus": self.corpus}
        given = {**named(self.latest.records), **corpus, "output": mined, "audit": audit}
        step = self.step(name, MineConfig, given, writes=[mined, audit], section=section, launched=True)
        self.latest.data = (str(mined), "train")
        return step

    def train_embedder(self) -> Iterator[Step]:
        """Train, merge the run's checkpoints, mine with the result."""
        if self.config.embed is not None:
            training = self.train("embed", EmbedConfig, "train/embed.py", self.latest.embedder)
            self.latest.embedder = str(self.place("embed") / "run" / "final")
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
        run = self.place("embed") / "run"
        model, results = self.place("merge") / "model", self.place("merge") / "results.json"
        dev = {"dev": self.dev()} if self.config.dev and "search" in section else {}
        given = {"run": run, **dev, "output": model, "results": results}
        # Not the whole run, in which times stand that no merge depends on.
        parts = {run: [run / "checkpoints", run / "config.yaml"]}
        self.latest.embedder = str(model)
        return self.step("merge", MergeConfig, given, writes=[model, results], parts=parts)

    def train_reranker(self) -> Iterator[Step]:
        """Write scores beside the records, train."""
        if self.config.score is not None:
            scored = self.place("score") / "scored.jsonl"
            require("judge" in self.config.score, "score: name a judge, a reranker or CrossEncoder")
            yield self.step("score", MineConfig, {**named(self.latest.data), "output": scored}, writes=[scored])
            self.latest.data = (str(scored), "train")
        if self.config.rerank is not None:
            yield self.train("rerank", RerankConfig, "train/rerank.py", self.latest.reranker)
            self.latest.reranker = str(self.place("rerank") / "run" / "final")

    def train(self, name: str, cls: type, script: str, model: str | None) -> Step:
        run = self.place(name) / "run"
        dev = {"dev": self.dev()} if self.config.dev else {}
        train = [dict(zip(("path", "split"), self.latest.data, strict=True))]
        # A run that is not there yet is started by resume, so that the command is the same after a kill.
        given = {"model": model, "train": train, **dev, "output_dir": run, "resume": True}
        return self.step(name, cls, given, script=script, writes=[run], resumes=True, launched=True)

    def evaluate(self) -> Iterator[Step]:
        """BM25, the models as they came and as they are now, and both together."""
        if self.config.evaluate is None:
            return
        of_embedder = self.config.evaluate
        of_reranker = {key: value for key, value in of_embedder.items() if key not in ("dims", "embedding_precision")}
        dims = of_embedder.get("dims")
        of_both = {**of_reranker, **({"dims": dims[:1]} if isinstance(dims, list) else {})}
        base, embedder = self.config.embedder_model, self.latest.embedder
        base_reranker, reranker = self.config.reranker_model, self.latest.reranker
        yield self.measure("bm25", {}, first_stage="bm25")
        if base is not None:
            yield self.measure("base", of_embedder, model=base)
        if embedder != base:
            yield self.measure("embedder", of_embedder, model=embedder)
        if base_reranker is not None:
            yield self.measure("base-reranker", of_reranker, first_stage="bm25", reranker=base_reranker)
        if reranker != base_reranker:
            yield self.measure("reranker", of_reranker, first_stage="bm25", reranker=reranker)
        if base is not None and base_reranker is not None:
            yield self.measure("base-both", of_both, model=base, reranker=base_reranker)
        if embedder is not None and reranker is not None and (embedder, reranker) != (base, base_reranker):
            yield self.measure("both", of_both, model=embedder, reranker=reranker)

    def measure(self, name: str, section: Mapping[str, Any], **models: str | None) -> Step:
        place = self.place(f"evaluate-{name}")
        output = place / f"{name}.json"
        given = {"data": self.config.test, "split": self.config.test_split, **models, "output": output, "details": True}
        writes = [output, details_path(output)]
        return self.step("evaluate", EvaluateConfig, given, name=place.name, section=section, writes=writes)

    def export(self) -> Iterator[Step]:
        """Put what was trained into embedder/ and reranker/ of the run: copies, as training has exported already."""
        section = self.config.export
        if section is None:
            return
        if self.config.embed is not None:
            yield self.copy("export-embedder", Path(self.latest.embedder or ""), self.folder / "embedder")
        if self.config.rerank is not None and not section:
            yield self.copy("export-reranker", Path(self.latest.reranker or ""), self.folder / "reranker")
        elif self.config.rerank is not None:
            output = self.folder / "reranker"
            given = {"model": self.latest.reranker, "output": output}
            shaped = {"shape": "causal", **section}
            yield self.step("export", ExportConfig, given, name="export-reranker", section=shaped, writes=[output])

    def copy(self, name: str, source: Path, target: Path) -> Step:
        return Step(name, "export", ("cp", "-r"), (str(source), str(target)), {}, (source,), (target,))

    def report(self) -> Iterator[Step]:
        """One page of the runs and the evaluations."""
        if self.config.report is not None:
            runs = [self.place(name) / "run" for name in ("embed", "rerank") if self.config.has(name)]
            output = self.folder / "report.html"
            given = {
                "title": self.folder.absolute().name,
                "runs": list(map(str, runs)),
                "results": list(map(str, self.results)),
                "config_file": self.settings,
                "output": output,
            }
            # Of a run what the page shows: its checkpoints are large. Details are read beside their results.
            parts = {run: [run / name for name in ("config.yaml", "run.json", "metrics.jsonl")] for run in runs}
            parts |= {each: [each, details_path(each)] for each in self.results}
            yield self.step("report", ReportConfig, given, writes=[output], parts=parts)

    @property
    def settings(self) -> Path:
        """Where the pipeline's own settings lie."""
        return self.folder / "pipeline.yaml"

    @property
    def corpus(self) -> str | None:
        own = self.config.train is not None and (Path(self.config.train) / "corpus.jsonl").is_file()
        return self.config.corpus or (self.config.train if own else None)

    def dev(self) -> list[dict[str, object]]:
        return [{"path": self.config.dev, "split": self.config.dev_split}]

    def place(self, name: str) -> Path:
        """The folder of a step."""
        return self.folder / "steps" / name

    def step(
        self,
        of: str,
        cls: type,
        given: Mapping[str, object],
        *,
        writes: list[Path],
        parts: Mapping[Path, list[Path]] | None = None,
        name: str | None = None,
        section: Mapping[str, Any] | None = None,
        script: str | None = None,
        resumes: bool = False,
        launched: bool = False,
    ) -> Step:
        """A step that runs a script.

        Args:
            of: The section of the configuration.
            cls: The script's settings.
            given: What the pipeline fills in; of these a section may set `dev` itself.
            writes: As of the step, and so the next two.
            parts: Of folders in the settings: what is read of them, where it is not all.
            name: Of the section, by default.
            section: The settings to take in place of those of the configuration.
            script: Of the section, by default.
            resumes: As of the step.
            launched: Whether the launcher starts it.
        """
        section = getattr(self.config, of) if section is None else section
        for key in FILLED[of]:
            require(key not in getattr(self.config, of), f"{of}: {key} is filled in by the pipeline; leave it away")
        filled = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        settings = {**filled, **section}
        config: Any = read_section(of, cls, settings)
        launcher = ["-m", "accelerate.commands.launch", *self.config.launcher] if launched else []
        launcher = launcher if self.config.launcher else []
        program = (sys.executable, *launcher, str(self.scripts / (script or SCRIPTS[of])))
        arguments = tuple(flags(cls, settings, asdict(config)))
        values = resolved(config)
        named = [path for path in paths_in(values) if path not in writes]
        reads = [each for path in named for each in (parts or {}).get(path, [path])]
        reads += files_in(launcher)
        return Step(name or of, of, program, arguments, values, tuple(reads), tuple(writes), resumes)


SCRIPTS = {
    "queries": "scripts/make_queries.py",
    "check": "scripts/check_data.py",
    "mine": "scripts/mine.py",
    "merge": "scripts/merge.py",
    "remine": "scripts/mine.py",
    "score": "scripts/mine.py",
    "evaluate": "scripts/evaluate.py",
    "export": "scripts/export.py",
    "report": "scripts/report.py",
}


def named(data: tuple[str, str]) -> dict[str, object]:
    """Records and their split as settings."""
    return {"data": data[0], "split": data[1]}


def replaced(value: object, latest: Mapping[str, str | None]) -> object:
    """A setting with the models that its words stand for."""
    if isinstance(value, list):
        return [replaced(each, latest) for each in value]
    model = latest.get(value) if isinstance(value, str) else None
    return value if model is None else model
