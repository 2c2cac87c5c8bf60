"""Settings of scripts/pipeline.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nestling.config.checks import require, require_unique
from nestling.config.report import FailIf
from nestling.config.sections import read_section
from nestling.config.split import SplitConfig

# jsonargparse reads a text that stands where Any is expected as YAML once more: [SEP] would become a list.
Value = str | int | float | bool | list[Any] | dict[str, Any] | None
Section = dict[str, Value]
# The reranker_model that is made of the latest embedder.
EMBEDDER = "embedder"
SECTIONS = (
    "documents",
    "queries",
    "split",
    "check",
    "mine",
    "embed",
    "merge",
    "remine",
    "score",
    "rerank",
    "evaluate",
    "export",
    "serve",
    "report",
)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """From raw text to served models in one run.

    Each section holds settings of the script that it is named for; a step whose section is absent or null is not done,
    and {} does it with the script's defaults.

    Args:
        output_dir: Folder of the run; the same command continues in it.
        train: Training records: any file, folder or dataset id that the recipes read; leave it out to make queries.
        train_split: The split of a BEIR folder or of a dataset id.
        corpus: BEIR folder or corpus.jsonl to make queries for and mine in; by default that of documents or train.
        dev: BEIR folder for evaluation during training, and for a merge's search; by default that of split.
        dev_split: Which qrels file of dev to use.
        test: BEIR folders that the models are measured on at the end; by default that of split.
        test_split: Which qrels file of test to use.
        embedder_model: Directory or hub id of the embedder to adapt.
        reranker_model: Directory or hub id of the reranker to adapt, or of a causal language model or an encoder; the
            word embedder for the embedder after training, an encoder.
        launcher: Arguments of `accelerate launch` for training and mining; by default plain python starts them.
        documents: Settings of scripts/read_documents.py: a corpus of a folder of documents.
        queries: Settings of scripts/make_queries.py: queries for the corpus.
        split: Settings of scripts/split.py: dev and test held out of the records, in place of dev and test here.
        check: Settings of scripts/check_data.py; with drop in it, training reads the cleaned copy.
        mine: Settings of scripts/mine.py: hard negatives by the embedder before training.
        embed: Settings of train/embed.py.
        merge: Settings of scripts/merge.py: checkpoints of the embedder's run.
        remine: Settings of scripts/mine.py: hard negatives by the embedder after training.
        score: Settings of scripts/mine.py: scores of a judge for the documents of the records.
        rerank: Settings of train/rerank.py.
        evaluate: Settings of scripts/evaluate.py: every model alone, both together, and BM25.
        export: Settings of scripts/export.py: dtype, and shape of the reranker; {} copies the models as they are.
        serve: Settings of scripts/serve_eval.py: a command that serves {embedder}, {reranker} or both, and their url.
        report: Settings of scripts/report.py.
        fail_if: End with status 3 if the models are worse than the base or BM25 on test, or not_better than both.
        only: Do this step alone, with what the steps before it have left.
        from_step: Do this step and those after it, with what the steps before it have left.
        dry_run: Print the steps, why each is to be done, and their commands; do nothing.
    """

    output_dir: str
    train: str | None = None
    train_split: str = "train"
    corpus: str | None = None
    dev: str | None = None
    dev_split: str = "dev"
    test: list[str] = field(default_factory=list)
    test_split: str = "test"
    embedder_model: str | None = None
    reranker_model: str | None = None
    launcher: list[str] = field(default_factory=list)
    documents: Section | None = None
    queries: Section | None = None
    split: Section | None = None
    check: Section | None = None
    mine: Section | None = None
    embed: Section | None = None
    merge: Section | None = None
    remine: Section | None = None
    score: Section | None = None
    rerank: Section | None = None
    evaluate: Section | None = None
    export: Section | None = None
    serve: Section | None = None
    report: Section | None = None
    fail_if: FailIf | None = None
    only: str | None = None
    from_step: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(any(self.has(name) for name in SECTIONS), f"no step: give a section, of {', '.join(SECTIONS)}")
        require(self.only is None or self.from_step is None, "give only or from_step, not both")
        self._check_data()
        self._check_models()
        require(len(set(self.test)) == len(self.test), "test: a folder is given twice")
        require_unique("test", [Path(folder).name for folder in self.test])
        require(
            not (self.has("evaluate") or self.has("report")) or bool(self.test) or self.splits_off("test"),
            "evaluate and report need a test set, a folder in the BEIR layout, or the section split, which makes one",
        )
        require(
            not self.has("serve") or self.has("evaluate"),
            "serve compares a server with what evaluate measures; give the section evaluate",
        )
        require(self.fail_if is None or self.has("evaluate"), "fail_if is of evaluations; give the section evaluate")
        require(not self.has("report") or self.has("evaluate"), "report shows evaluations; give the section evaluate")

    def has(self, section: str) -> bool:
        """Whether a section is there."""
        return getattr(self, section) is not None

    def splits_off(self, name: str) -> bool:
        """Whether the section split makes a set, dev or test."""
        if self.split is None:
            return False
        config = read_section("split", SplitConfig, {**self.split, "data": "", "output": ""})
        return {"dev": config.dev_share, "test": config.test_share}[name] > 0

    def _check_data(self) -> None:
        for name in ("dev", "test"):
            given = bool(getattr(self, name))
            require(
                not (given and self.splits_off(name)), f"give either {name} or split, which makes one; {name}_share: 0"
            )
            split = getattr(self, f"{name}_split")
            require(
                split == name or not self.splits_off(name),
                f"{name}_split is {split}, and split writes {name}; remove it",
            )
        require(
            (self.train is None) == self.has("queries"),
            "give either train, the records to train on, or the section queries, which makes them",
        )
        require(self.corpus is None or not self.has("documents"), "give either corpus or documents, which makes one")
        require(
            self.corpus is not None or self.has("documents") or not self.has("queries"),
            "queries needs a corpus to make them for, or the section documents, which makes one",
        )

    def _check_models(self) -> None:
        for section in ("merge", "remine"):
            require(self.has("embed") or not self.has(section), f"{section} needs a trained embedder, thus embed")
        require(
            self.embedder_model is not None or not self.has("embed"), "embed needs an embedder_model, which it adapts"
        )
        require(
            self.reranker_model is not None or not self.has("rerank"), "rerank needs a reranker_model, which it adapts"
        )
        require(
            self.reranker_model != EMBEDDER or (self.embedder_model is not None and self.has("rerank")),
            "reranker_model: embedder needs an embedder_model, and the section rerank, which makes a reranker of it",
        )
        require(
            not self.has("export") or self.has("embed") or self.has("rerank"),
            "export has nothing to write; it needs the section embed or rerank",
        )
        models = self.embedder_model is not None or self.reranker_model is not None
        require(models or not self.has("evaluate"), "evaluate needs an embedder_model or a reranker_model")
