"""Settings of scripts/mine.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Mine hard negatives, or, without retrievers, write a reranker's scores into records.

    Args:
        data: Training records: any file, folder or dataset id that the recipes read.
        output: JSONL file for the result; must not exist. A sweep writes none.
        split: The split of a BEIR folder or of a dataset id.
        instruction: Task of the queries of rows without one; the model's own by default.
        corpus: Where negatives come from: a BEIR folder or a corpus.jsonl; that of --data if it is a BEIR folder, else
            all documents of the records.
        retrievers: bm25, directories or hub ids of embedders, TREC run files, and given, the negatives of the records;
            with commas between.
        depth: Candidates of a query that each retriever finds.
        index: FAISS index in which embedders find candidates, as a string for its factory, such as IVF4096,PQ64x4fs;
            by default they are found exactly.
        index_search: FAISS's settings of a search in it, such as nprobe=64; by default IVF looks into the root of its
            lists' number.
        query_max_length: Tokens of a query, its prompt and end token included.
        document_max_length: Tokens of a document, likewise.
        compute: Precision of the models; bf16 is quicker where the hardware has it.
        negatives: Negatives of a query.
        sampling: Take those that score highest, or draw.
        among: Draw among so many that score highest; all that are left by default.
        seed: Of the draw.
        scorer: Whose scores thresholds and order use: one of the retrievers, another embedder, or judge; the first
            embedder by default, else the first retriever.
        rank_from: Drop candidates of better ranks, known positives counted.
        rank_to: Drop candidates of worse ranks.
        absolute: Keep a candidate only if its score is at most this.
        margin: Keep one only if it scores lower than the lowest positive by more than this.
        percent: Keep one only if it scores below this share of the lowest positive's score; null for no such rule.
        ceiling: Drop one whose cosine with a positive, by the first embedder, is above this.
        judge: Directory or hub id of a reranker or a CrossEncoder.
        judge_depth: Candidates of a query that it reads, those that score highest.
        relevant: Candidates to which it gives a higher probability are no negatives.
        relabel: Make them positives.
        scores: What to write of a judge: logits, which a softmax over documents takes, or probabilities; or ensemble,
            the mean of the standard scores of all retrievers.
        consistent: Keep a positive only if it is among so many first documents of its query, by the scorer.
        least_score: Keep a positive only if it has at least this score, by the scorer.
        judgements: BEIR folder whose judgements of the split measure how many negatives are false.
        sweep: Print what each of many thresholds would keep, and write nothing.
        format: Dialect of the output.
        explain: Write ids, ranks and scores by every retriever beside each row (ours only).
        audit: HTML page that shows what was mined; must not exist.
    """

    data: str
    output: str | None = None
    split: str = "train"
    instruction: str | None = None
    corpus: str | None = None
    retrievers: list[str] = field(default_factory=list)
    depth: int = 100
    index: str | None = None
    index_search: str | None = None
    query_max_length: int = 512
    document_max_length: int = 512
    compute: Literal["fp32", "bf16"] = "fp32"
    negatives: int = 7
    sampling: Literal["top", "random"] = "top"
    among: int | None = None
    seed: int = 42
    scorer: str | None = None
    rank_from: int = 1
    rank_to: int | None = None
    absolute: float | None = None
    margin: float | None = None
    percent: float | None = 0.95
    ceiling: float | None = None
    judge: str | None = None
    judge_depth: int = 30
    relevant: float = 0.5
    relabel: bool = False
    scores: Literal["logit", "probability", "ensemble"] = "logit"
    consistent: int | None = None
    least_score: float | None = None
    judgements: str | None = None
    sweep: bool = False
    format: Literal["nestling", "sentence-transformers", "flagembedding"] = "nestling"
    explain: bool = False
    audit: str | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "query_max_length", "document_max_length", "negatives", "rank_from", "judge_depth"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("among", "rank_to", "consistent"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, expected at least 1")
        require(
            bool(self.retrievers or self.judge), "give --retrievers to mine with, or a --judge that scores the rows"
        )
        require(len(set(self.retrievers)) == len(self.retrievers), "retrievers: one is given twice")
        require(self.index is not None or self.index_search is None, "index_search is for an index, and none is given")
        require(self.sweep != (self.output is not None), "give either an --output or --sweep, which writes none")
        require(bool(self.retrievers) or not self.sweep, "a sweep needs --retrievers")
        require(self.seed >= 0, f"seed is {self.seed}, expected 0 or more")
        require(
            self.rank_to is None or self.rank_from <= self.rank_to <= self.depth,
            f"rank_to is {self.rank_to}, expected from rank_from, {self.rank_from}, to depth, {self.depth}",
        )
        require(self.rank_from <= self.depth, f"rank_from is {self.rank_from}, and only {self.depth} are found (depth)")
        require(self.margin is None or self.margin >= 0, f"margin is {self.margin}, expected 0 or more")
        require(
            self.percent is None or 0 < self.percent <= 1, f"percent is {self.percent}, expected a share: 0 < p <= 1"
        )
        require(0 <= self.relevant <= 1, f"relevant is {self.relevant:g}, expected a probability")
        require(self.among is None or self.sampling == "random", "among is for sampling: random")
        require(
            self.among is None or self.among >= self.negatives,
            f"among is {self.among}, fewer than the {self.negatives} negatives to draw",
        )
        require(self.judge is not None or self.scorer != "judge", "scorer: judge needs a --judge")
        require(
            self.scores != "ensemble" or (len(self.retrievers) > 1 and "given" not in self.retrievers),
            "scores: ensemble needs two or more retrievers that score every document, embedders and bm25",
        )
        require(
            self.scorer != "judge" or (self.consistent is None and self.least_score is None),
            "consistent and least_score go by a retriever's scores; name another scorer than judge",
        )
        require(self.judge is not None or not self.relabel, "relabel needs a --judge, which says what is relevant")
        require(not self.explain or self.format == "nestling", f"explain: {self.format} has no field for it")
