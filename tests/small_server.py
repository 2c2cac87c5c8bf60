"""A small real server of models, for tests: `python small_server.py NAME=DIRECTORY ...`.

It prints its address and answers until its standard input is closed; with `--port=PORT` in front, at that port until it
is told to end. A path names the model, then what the server is to do wrongly, as in
http://127.0.0.1:1234/qwen3/no-eos/v1/embeddings; `healthy` goes through sentence-transformers.
"""

import base64
import json
import math
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

Answer = tuple[int, Any]


class Embeddings:
    """/v1/embeddings."""

    def __init__(self, directory: str) -> None:
        self.healthy = SentenceTransformer(directory, device="cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModel.from_pretrained(directory).eval()
        self.short = AutoModel.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self.prompt = self.healthy.prompts.get("query", "")
        pooling = json.loads((Path(directory) / "1_Pooling" / "config.json").read_text())
        self.pooling = next(name for name, chosen in pooling.items() if name.startswith("pooling_mode") and chosen)

    def post(self, path: str, fault: str, body: dict[str, Any]) -> Answer:
        if fault == "tei":
            return (200, self.embed(body["inputs"], "healthy").tolist()) if path == "/embed" else (404, "not found")
        if fault == "cohere":
            if path != "/v2/embed":
                return 404, {"message": "not found"}
            prompt = self.healthy.prompts[body["input_type"].removeprefix("search_")]
            vectors = self.embed([prompt + text for text in body["texts"]], "healthy")
            return 200, {"embeddings": {"float": vectors.tolist()}}
        if path != "/v1/embeddings":
            return 404, {"error": {"message": "no such endpoint"}}
        dim = body.get("dimensions")
        if dim and fault == "refuses-dimensions":
            return 400, {"object": "error", "message": "does not support matryoshka representation"}
        texts = body["input"]
        if fault == "refuses-blank" and any(not text.strip() for text in texts):
            return 422, {"error": "input cannot be empty"}
        limit = self.healthy.max_seq_length
        if fault == "refuses-long" and any(len(self.tokenizer(text)["input_ids"]) > limit for text in texts):
            return 500, {"error": {"message": "input is too large to process"}}
        if fault == "refuses-batches" and len(texts) > 1:
            return 413, {"error": "batch size 8 > maximum allowed batch size 1"}
        vectors = self.embed(texts, fault)
        if len(texts) > 1 and fault == "nan-together":
            vectors = vectors.where(torch.arange(len(vectors))[:, None] > 0, torch.nan)
        if len(texts) > 1 and fault == "short-together":
            vectors = vectors[:, :16]
        if dim and fault != "ignores-dimensions":
            vectors = vectors[:, :dim] if fault == "cuts-only" else normalize(vectors[:, :dim], dim=-1)
        rows = [{"index": i, "embedding": encode(row, body, fault)} for i, row in enumerate(vectors.numpy())]
        used = sum(len(text.split()) for text in texts)
        return 200, {"data": rows[::-1] if fault == "backwards" else rows, "usage": {"total_tokens": used}}

    def embed(self, texts: list[str], fault: str) -> torch.Tensor:
        if fault == "doubled-prompt":
            texts = [self.prompt + text for text in texts]
        if fault == "strips":
            texts = [text.strip() for text in texts]
        if fault in HEALTHY:
            return self.healthy.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        ids = [self.tokens(text, fault) for text in texts]
        hidden, mask = self.run(ids, fault)
        vectors = pool(hidden, mask, fault, self.pooling)
        if fault == "nan":
            vectors[-1] = torch.nan
        if fault == "short":
            vectors = vectors[:, :16]
        if fault == "noisy":
            vectors += 0.1 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
        unnormalised = fault.startswith("unnormalised") or (len(self.healthy) == 2 and fault != "normalises")
        return vectors if unnormalised else normalize(vectors, dim=-1)

    def tokens(self, text: str, fault: str) -> list[int]:
        limit = {"cuts-at-40": 40, "cuts-at-256": 256}.get(fault, self.healthy.max_seq_length)
        if fault == "keeps-the-end":
            return list(self.tokenizer(text)["input_ids"])[-limit:]
        ids: list[int] = self.tokenizer(text, truncation=not fault.endswith("slices"), max_length=limit)["input_ids"][
            :limit
        ]
        bare: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"][:limit]
        if fault in ("no-eos", "no-eos-and-prompt"):
            text = self.prompt + text if fault == "no-eos-and-prompt" else text
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        endings = {"two-eos": [*ids, ids[-1]], "im-end": [*ids[:-1], self.tokenizer.eos_token_id], "bare": bare}
        return endings.get(fault, ids)

    def run(self, ids: list[list[int]], fault: str) -> tuple[torch.Tensor, torch.Tensor]:
        side = "right" if fault == "right-last" else "left" if fault == "left-unmasked" else None
        batch = self.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
        mask = batch["attention_mask"]
        if fault == "left-unmasked":
            batch["attention_mask"] = torch.ones_like(mask)
        model = self.short if fault == "bfloat16" else self.model
        with torch.no_grad():
            return model(**batch).last_hidden_state.float(), mask


def pool(hidden: torch.Tensor, mask: torch.Tensor, fault: str, pooling: str) -> torch.Tensor:
    if fault == "mean" or (pooling == "pooling_mode_mean_tokens" and fault != "cls"):
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    if fault == "cls":
        return hidden[torch.arange(len(hidden)), mask.argmax(1)]
    if fault in ("right-last", "left-unmasked"):
        return hidden[:, -1]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


def encode(vector: np.ndarray, body: dict[str, Any], fault: str) -> Any:
    if body.get("encoding_format") != "base64" or fault == "ignores-base64":
        return vector.tolist()
    return base64.b64encode(vector.astype(">f4" if fault == "big-endian" else "<f4").tobytes()).decode()


# Faults that leave the embeddings of a batch as they are.
HEALTHY = {
    "healthy",
    "doubled-prompt",
    "strips",
    "refuses-dimensions",
    "ignores-dimensions",
    "cuts-only",
    "big-endian",
    "ignores-base64",
    "refuses-blank",
    "refuses-long",
    "refuses-batches",
    "nan-together",
    "short-together",
    "backwards",
}


class Scores:
    """/v1/rerank, or /v1/score when the fault is pairs-only, or /rerank in TEI's form when it is tei."""

    def __init__(self, directory: str) -> None:
        self.healthy = CrossEncoder(directory, device="cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.settings: dict[str, str] = {}
        if (Path(directory) / "reranker.json").exists():
            self.settings = json.loads((Path(directory) / "reranker.json").read_text())
            if "prefix" in self.settings:
                self.model = AutoModelForCausalLM.from_pretrained(directory).eval()

    def post(self, path: str, fault: str, body: dict[str, Any]) -> Answer:
        if fault == "tei":
            if path != "/rerank":
                return 404, "not found"
            if "texts" not in body:
                return 422, "missing field `texts`"
            scores = self.score(body["query"], body["texts"], fault)
            return 200, sorted(rows(scores, "score"), key=lambda row: -row["score"])
        if fault == "pairs-only":
            if path != "/v1/score":
                return 404, {"detail": "Not Retrieved"}
            return 200, {"data": rows(self.score(body["text_1"], body["text_2"], fault), "score")}
        if path != "/v1/rerank" or fault == "no-endpoint":
            return 404, {"detail": "Not Retrieved"}
        documents = body["documents"]
        if fault == "refuses-long-pairs":
            documents = [self.cut(each, body.get("max_tokens_per_doc")) for each in documents]
            pairs = self.tokenizer([body["query"]] * len(documents), documents)["input_ids"]
            if max(map(len, pairs)) > self.tokenizer.model_max_length:
                return 400, {"error": {"message": "This model's maximum context length is exceeded"}}
        scores = self.score(body["query"], documents, fault)
        return 200, {"results": sorted(rows(scores, "relevance_score"), key=lambda row: -row["relevance_score"])}

    def cut(self, text: str, tokens: int | None) -> str:
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if tokens is None or tokens >= len(places) else text[: places[tokens - 1][1]]

    def score(self, query: str, documents: list[str], fault: str) -> list[float]:
        logits = self.logits(query, documents, fault)
        if fault == "nan" or (fault == "nan-together" and len(documents) > 1):
            return [math.nan] * len(documents)
        if fault == "logits":
            return logits.tolist()
        if "Identity" in str(self.healthy.activation_fn) and fault in (*PAIRS, "healthy", "refuses-long-pairs"):
            return logits.tolist()
        if fault == "two-sigmoids":
            logits = logits.sigmoid()
        return (-logits if fault == "inverted" else logits).sigmoid().tolist()

    def logits(self, query: str, documents: list[str], fault: str) -> torch.Tensor:
        if fault in PAIRS:
            return self.of_pairs([PAIRS[fault](query, document) for document in documents], fault)
        if fault not in READINGS:
            pairs = [(query, document) for document in documents]
            return self.healthy.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
        prompts = [READINGS[fault](self.settings, query, document) for document in documents]
        # Padded on the right and read at the last position is what the fault `right-last` is.
        batch = self.tokenizer(
            prompts,
            add_special_tokens=False,
            padding=True,
            padding_side="right" if fault == "right-last" else "left",
            return_tensors="pt",
        )
        answers = [self.tokenizer(word)["input_ids"][0] for word in ("no", "yes")]
        with torch.no_grad():
            found = self.model(**batch).logits[:, -1, answers]
        return found[:, 1] - found[:, 0]

    def of_pairs(self, texts: list[list[str]], fault: str) -> torch.Tensor:
        batch = self.tokenizer(*map(list, zip(*texts, strict=True)), padding=True, truncation=True, return_tensors="pt")
        if fault == "one-type":
            batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
        with torch.no_grad():
            return self.healthy.model(**batch).logits[:, 0]


def body(query: str, document: str, instruction: str, gap: str = "\n") -> str:
    return f"<Instruct>: {instruction}{gap}<Query>: {query}{gap}<Document>: {document}"


READINGS = {
    "no-template": lambda s, q, d: q + d,
    "no-suffix": lambda s, q, d: s["prefix"] + body(q, d, s["instruction"]),
    "default-instruction": lambda s, q, d: (
        s["prefix"]
        + body(q, d, "Given a web search query, retrieve relevant passages that answer the query")
        + s["suffix"]
    ),
    "no-instruction": lambda s, q, d: s["prefix"] + body(q, d, "") + s["suffix"],
    "empty-lines": lambda s, q, d: s["prefix"] + body(q, d, s["instruction"], "\n\n") + s["suffix"],
    "swapped": lambda s, q, d: s["prefix"] + body(d, q, s["instruction"]) + s["suffix"],
    "eos": lambda s, q, d: s["prefix"] + body(q, d, s["instruction"]) + s["suffix"] + "<|endoftext|>",
    "right-last": lambda s, q, d: s["prefix"] + body(q, d, s["instruction"]) + s["suffix"],
}


# Of encoders: the texts that their tokenizer joins.
PAIRS = {
    "one-text": lambda q, d: [f"{q} {d}"],
    "one-type": lambda q, d: [q, d],
    "swapped-pair": lambda q, d: [d, q],
    "bare-query": lambda q, d: [q, d],
}


def rows(scores: list[float], name: str) -> list[dict[str, float]]:
    return [{"index": i, name: score} for i, score in enumerate(scores)]


def serve(models: dict[str, Embeddings | Scores], port: int = 0) -> None:
    lock, asked = Lock(), count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self.answer(200, {})
                return
            _, fault, path = split(self.path)
            listed = path == "/v1/models" and fault != "tei"
            self.answer(*((200, {"data": [{"id": "tiny"}]}) if listed else (404, {"detail": "Not Retrieved"})))

        def do_POST(self) -> None:
            name, fault, path = split(self.path)
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fault == "key" and self.headers["Authorization"] != "Bearer secret":
                self.answer(401, {"error": {"message": "wrong key"}})
            elif fault == "not-json":
                self.answer(200, None)
            elif fault == "slow":
                time.sleep(2)
            elif fault == "flaky" and next(asked) % 3 == 1:
                self.answer(503, {"error": "overloaded"}, {"Retry-After": "0"})
            else:
                try:
                    with lock:
                        found = models[name].post(path, "healthy" if fault in ("key", "flaky") else fault, sent)
                except RuntimeError as error:
                    found = 500, {"error": {"message": str(error)}}
                self.answer(*found)

        def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            text = (b"<html>" if content is None else json.dumps(content).encode()) + b"\n"
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    if port:  # until it is told to end
        signal.pause()
    sys.stdin.read()
    server.shutdown()


def split(path: str) -> tuple[str, str, str]:
    """The model, the fault and the rest of a path."""
    _, name, fault, rest = path.split("/", 3)
    return name, fault, f"/{rest}"


def load(directory: str) -> Embeddings | Scores:
    return (Embeddings if (Path(directory) / "1_Pooling").is_dir() else Scores)(directory)


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    port = int(words.pop(0).removeprefix("--port=")) if words[0].startswith("--port=") else 0
    serve({name: load(directory) for name, _, directory in (word.partition("=") for word in words)}, port)
