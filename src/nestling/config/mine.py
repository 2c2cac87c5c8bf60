"""Settings of scripts/mine.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.attention import Attention, require_attention
from nestling.config.checks import changed, require, require_at_least, require_share
from nestling.config.prompts import require_prompts

# What a judge without retrievers takes: it scores the rows and mines nothing.
OF_JUDGE = (
    *("data", "output", "split", "columns", "instruction", "judge", "scores", "format"),
    *("precision", "attn_implementation", "trust_remote_code"),
)

# What a sweep tries itself, or does not reach: it draws the candidates that score highest, and writes none.
NOT_OF_SWEEP = (
    *("rank_from", "rank_to", "max_score", "absolute_margin", "max_score_ratio", "ceiling", "relevant", "relabel"),
    *("sampling", "among", "seed", "scores", "format", "explain"),
)


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Mine hard negatives, or, without retrievers, write a reranker's scores into records.

    Args:
        data: Training records: any file, folder or dataset id that the recipes read.
        output: JSONL file for the result; must not exist; a sweep writes none.
        split: The split of a BEIR folder or of a dataset id.
        columns: Columns of the data, such as query=title,positive=body,negatives=others; by default recognised.
        instruction: Task of the queries of rows without one; by default the model's own.
        query_prompt: Text that embedders read before queries, "" for none; by default as the files of each say.
        document_prompt: Text that embedders read before documents, likewise.
        corpus: BEIR folder or corpus.jsonl to mine in; by default that of data, or all documents of the records.
        retrievers: bm25, embedders, TREC run files, or given for the records' own negatives; with commas between.
        depth: Candidates that each retriever finds for a query.
        index: FAISS index for embedders, as its factory's string, such as IVF4096,PQ64x4fs; by default search is exact.
        index_search: Parameters of a search in the index, such as nprobe=64; by default nprobe is the root of nlist.
        query_max_length: Longest query in tokens, with prompt and end token; by default the embedder's own limit.
        document_max_length: Longest document in tokens, likewise.
        precision: Type of the computation; auto is bf16 on a GPU and fp32 on a CPU. Similarities are float32.
        attn_implementation: As in transformers; auto: the fastest that a model has; varlen: packed where it can be.
        num_negatives: Negatives of a query.
        sampling: Take the negatives that score highest (top), or draw them (random).
        among: For random: draw among this many candidates, those that score highest; by default all that are left.
        seed: Seed of the draw.
        scorer: Retriever, other embedder, or judge whose scores count; by default the first embedder, else retriever.
        rank_from: Drop candidates of better ranks, known positives counted.
        rank_to: Drop candidates of worse ranks.
        max_score: Keep a candidate only if its score is at most this.
        absolute_margin: Keep a candidate only if it scores lower than the lowest positive by more than this.
        max_score_ratio: Keep a candidate only below this fraction of the lowest positive's score; null: no such rule.
        ceiling: Drop a candidate whose cosine with a positive, by the first embedder, is above this.
        judge: Directory or hub id of a reranker or a CrossEncoder.
        trust_remote_code: Run the code that comes with the models.
        judge_depth: Candidates of a query that the judge reads, those that score highest.
        relevant: Candidates to which the judge gives a higher probability are no negatives.
        relabel: Make those candidates positives.
        scores: Scores to write: a judge's logits or probabilities, or the mean standard score of all retrievers.
        consistent: Keep a positive only if it is among this many first documents of its query, by the scorer.
        least_score: Keep a positive only if it has at least this score, by the scorer.
        judgements: BEIR folder whose judgements of the split measure how many negatives are false.
        sweep: Print what each of many thresholds would keep, and write nothing.
        format: Dialect of the output.
        explain: Also write ids, ranks and scores by every retriever (only in format nestling).
        audit: HTML page that shows what was mined; must not exist.
    """

    data: str
    output: str | None = None
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    instruction: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    corpus: str | None = None
    retrievers: list[str] = field(default_factory=list)
    depth: int = 100
    index: str | None = None
    index_search: str | None = None
    query_max_length: int | None = None
    document_max_length: int | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attn_implementation: Attention = "auto"
    num_negatives: int = 7
    sampling: Literal["top", "random"] = "top"
    among: int | None = None
    seed: int = 42
    scorer: str | None = None
    rank_from: int = 1
    rank_to: int | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    max_score_ratio: float | None = 0.95
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
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, self, "depth", "query_max_length", "document_max_length", "num_negatives", "rank_from")
        require_at_least(1, self, "judge_depth", "among", "rank_to", "consistent")
        require_at_least(0, self, "seed", "absolute_margin")
        require(self.seed < 2**63, f"seed is {self.seed}, expected one below 2^63")
        require_share(self, "max_score_ratio")
        require_attention(self.attn_implementation, self.precision)
        require(0 <= self.relevant <= 1, f"relevant is {self.relevant:g}, expected a probability")
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction])
        self._check_sources()
        self._check_choice()

    def _check_sources(self) -> None:
        require(
            bool(self.retrievers or self.judge), "give --retrievers to mine with, or a --judge that scores the rows"
        )
        require(len(set(self.retrievers)) == len(self.retrievers), "retrievers: one is given twice")
        require(self.index is not None or self.index_search is None, "index_search is for an index, and none is given")
        require(self.sweep != (self.output is not None), "give either an --output or --sweep, which writes none")
        require(bool(self.retrievers) or not self.sweep, "a sweep needs --retrievers")
        require(not self.sweep or self.audit is None, "a sweep writes no audit; give an --output, or no --audit")
        require(
            not self.sweep or self.scorer != "judge",
            "a sweep compares thresholds of a retriever's scores, and of the judge's; name another scorer than judge",
        )
        unused = [name for name in changed(self, "") if name in NOT_OF_SWEEP] if self.sweep else []
        require(
            not unused,
            f"{', '.join(unused)}: a sweep tries thresholds of its own, each alone, on the candidates that score "
            "highest, and writes nothing; leave this out",
        )
        unused = [] if self.retrievers else [name for name in changed(self, "") if name not in OF_JUDGE]
        require(not unused, f"without --retrievers a judge only scores the rows; leave out {', '.join(unused)}")

    def _check_choice(self) -> None:
        require(
            self.rank_to is None or self.rank_from <= self.rank_to <= self.depth,
            f"rank_to is {self.rank_to}, expected from rank_from, {self.rank_from}, to depth, {self.depth}",
        )
        require(self.rank_from <= self.depth, f"rank_from is {self.rank_from}, and only {self.depth} are found (depth)")
        require(self.among is None or self.sampling == "random", "among is for sampling: random")
        require(self.seed == MineConfig.seed or self.sampling == "random", "seed is for sampling: random")
        require(
            self.among is None or self.among >= self.num_negatives,
            f"among is {self.among}, fewer than the {self.num_negatives} negatives to draw",
        )
        require(self.judge is not None or self.scorer != "judge", "scorer: judge needs a --judge")
        only_given = self.retrievers == ["given"] and self.scorer is None
        require(
            self.scorer != "given" and not only_given,
            "given has no scores; name a --scorer, an embedder, bm25 or judge, to filter them by",
        )
        require(
            self.scores != "ensemble" or (len(self.retrievers) > 1 and "given" not in self.retrievers),
            "scores: ensemble needs two or more retrievers that score every document, embedders and bm25",
        )
        require(
            self.scorer != "judge" or (self.consistent is None and self.least_score is None),
            "consistent and least_score go by a retriever's scores; name another scorer than judge",
        )
        require(self.judge is not None or self.scores != "probability", "scores: probability needs a --judge")
        of_judge = [name for name in changed(self, "") if name in ("judge_depth", "relevant")]
        require(self.judge is not None or not of_judge, f"{', '.join(of_judge)} need a --judge")
        require(self.judge is not None or not self.relabel, "relabel needs a --judge, which says what is relevant")
        require(not self.explain or self.format == "nestling", f"explain: {self.format} has no field for it")
