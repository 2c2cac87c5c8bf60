"""Settings of scripts/search_stores.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_at_least, require_dims
from nestling.config.prompts import require_prompts

Store = Literal["pgvector", "lancedb"]
StoredPrecision = Literal["float32", "float16", "int8", "binary"]


@dataclass(frozen=True, kw_only=True)
class SearchStoresConfig:
    """Settings of scripts/search_stores.py.

    Args:
        data: Folder with corpus.jsonl, queries.jsonl and qrels/.
        model: Directory or hub id of the embedding model.
        output: Folder for the stores and results.json; must not exist.
        overwrite: Go on in a folder that exists; replace its results.json, and tables with the names of new ones.
        stores: pgvector, lancedb, or both with a comma between.
        postgres_url: A Postgres with pgvector, such as postgresql://user@host/database; by default one is started.
        split: Which qrels file to use.
        dims: Dimensions to cut embeddings to; by default the full one and the model's matryoshka_dimensions.
        embedding_precision: Types in which the index keeps embeddings; of int8 and binary the best are scored again.
        oversampling: Candidates of int8 and binary for each result, which are scored again by float16; 1: by none.
        ef_search: Nodes that the search of a graph keeps; more find more and take longer.
        instruction: Task of the queries; by default the model's own query prompt.
        query_prompt: Text before queries, "" for none, {instruction} for theirs; by default as the model's files say.
        document_prompt: Text before documents, "" for none; by default as the model's files say.
        query_max_length: Longest query in tokens, with prompt and end token; by default the model's own limit.
        document_max_length: Longest document in tokens, likewise.
        precision: Type of the computation; auto is bf16 on a GPU and fp32 on a CPU.
        trust_remote_code: Run the code that comes with the model.
    """

    data: str
    model: str
    output: str
    overwrite: bool = False
    stores: list[Store] = field(default_factory=lambda: ["pgvector", "lancedb"])
    postgres_url: str | None = None
    split: str = "test"
    dims: list[int] = field(default_factory=list)
    embedding_precision: list[StoredPrecision] = field(default_factory=lambda: ["float32", "float16", "int8", "binary"])
    oversampling: int = 4
    ef_search: int = 100
    instruction: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    query_max_length: int | None = None
    document_max_length: int | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("stores", "embedding_precision"):
            given = getattr(self, name)
            require(bool(given), f"{name} is empty; --help lists what there is")
            require(len(set(given)) == len(given), f"{name}: one is given twice")
        require(
            self.stores != ["pgvector"] or self.embedding_precision != ["int8"],
            "pgvector has no int8; expected float32, float16 or binary, or lancedb among the stores",
        )
        require_dims(self.dims)
        require_at_least(1, self, "oversampling", "query_max_length", "document_max_length")
        least = 11 * self.oversampling
        require(
            least <= self.ef_search <= 1000,
            f"ef_search is {self.ef_search}, expected from {least}, 11 times oversampling, to 1000, pgvector's most",
        )
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction])
        if self.postgres_url is not None:
            require("pgvector" in self.stores, "postgres_url is of pgvector, which is not among the stores")
            require_postgres(self.postgres_url)


def require_postgres(url: str) -> None:
    """Raise ValueError unless a text is the address of a Postgres without a password, which would be written down."""
    require(
        url.startswith(("postgresql://", "postgres://")),
        f"postgres_url: {url.partition(':')[0]!r} does not begin an address; expected postgresql://user@host/database",
    )
    user = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    require(
        ":" not in user and "password=" not in url,
        "postgres_url: expected an address without a password, which PGPASSWORD or ~/.pgpass gives",
    )
