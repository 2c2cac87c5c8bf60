"""Servers beside the directories that they serve: a real small one, with one fault at a time."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ranks import ROOT, environment

import warm
from hostile_server import answer, hostile
from nestling.serving.client import ScoreEndpoint, Server, split_url
from nestling.serving.embedder_reference import EmbedderReference
from nestling.serving.findings import ServerReport, simplest_explanation
from nestling.serving.reranker_reference import RerankerReference
from nestling.serving.rerankers import check_reranker
from recipes.runs import run_main
from scripts.serve_check import main

serve_check = partial(run_main, main)


def aspects(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a check says is wrong: the first words of its findings, which stand before lines of advice."""
    said = done.stdout.splitlines()
    return [before.partition(":")[0] for before, line in pairwise(said) if line.startswith("  ")]


@pytest.mark.parametrize("name", ["qwen3", "plain", "e5", "causal", "classifier"])
def test_a_healthy_server_fits(name: str, url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/{name}/healthy", "--model", models[name], "--least_cosine", "0.999999")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nfits\n")
    assert "model tiny" in done.stdout


@pytest.mark.parametrize("address", ["", "/v1", "/v1/embeddings"])
def test_the_address_may_be_that_of_the_server_or_of_an_endpoint(
    address: str, url: str, models: dict[str, Path]
) -> None:
    done = serve_check("--url", f"{url}/qwen3/healthy{address}", "--model", models["qwen3"], "--dims", "32,16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{url}/qwen3/healthy/v1/embeddings" in done.stdout


@pytest.mark.parametrize(
    "fault", ["bfloat16", "ignores-base64", "backwards", "refuses-blank", "refuses-long", "refuses-batches"]
)
def test_differences_that_are_not_faults(fault: str, url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/qwen3/{fault}", "--model", models["qwen3"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("note: " in done.stdout) == fault.startswith("refuses")


FAULTS = {
    "no-eos": ("EOS", "read without special tokens: cosine 1.0000 with that"),
    "two-eos": ("EOS", "with <|endoftext|> twice"),
    "im-end": ("EOS", "with <|im_end|> at the end"),
    "doubled-prompt": ("prompt", "puts 'Instruct: Given a web search query, retrieve relevant passages"),
    "strips": ("white space", "the server strips white space at the ends of texts: cosine 1.0000 with that"),
    "mean": ("pooling", "pools by mean, the directory by last"),
    "cls": ("pooling", "pools by cls"),
    "right-last": ("padding", "pads on the right, which it does not attend to, and pools as if there were none"),
    "left-unmasked": ("padding", "pads on the left, which it attends to"),
    "unnormalised": ("normalisation", "has length 8.0000, the directory's has 1.0000"),
    "short": ("dimension", "have 16 numbers, the directory's have 64"),
    "slices": ("truncation", "without its end, whose special tokens are cut off"),
    "cuts-at-40": ("truncation", "truncated to 40 tokens"),
    "cuts-at-256": ("truncation", "is read whole, all its "),
    "keeps-the-end": ("truncation", "without its beginning"),
    "refuses-dimensions": ("dimension", "dimensions: 32 is refused: 400, does not support matryoshka"),
    "ignores-dimensions": ("dimension", "dimensions: 32 gives 64 numbers"),
    "cuts-only": ("dimension", "dimensions: 32 truncates and does not normalise again"),
    "big-endian": ("encoding", "base64 gives other numbers"),
    "nan": ("NaN", "8 of 8 answers hold NaN"),
    "noisy": ("precision", "the minimum cosine is 0.99"),
}


# Those that are planted by default, one of each place where they are found; the others are marked slow.
SAMPLE = ("no-eos", "doubled-prompt", "mean", "keeps-the-end", "ignores-dimensions", "logits", "no-template", "eos")


def sampled(faults: Iterable[str]) -> list[object]:
    return [pytest.param(each, marks=() if each in SAMPLE else pytest.mark.slow) for each in faults]


# Faults by which only texts beyond the directory's limit differ.
BEYOND_LIMIT = ("slices", "cuts-at-256", "keeps-the-end")


@pytest.mark.parametrize("fault", sampled(FAULTS))
def test_faults_of_an_embedder_are_named(fault: str, url: str, models: dict[str, Path]) -> None:
    dims = ["--dims", "32"] if fault in ("refuses-dimensions", "ignores-dimensions", "cuts-only") else []
    done = serve_check(f"{url}/qwen3/{fault}", "--model", models["qwen3"], *dims)
    aspect, what = FAULTS[fault]
    assert done.returncode == (3 if fault in BEYOND_LIMIT else 1), done.stdout + done.stderr
    assert ("fits up to the limit, differs beyond it:" in done.stdout) == (fault in BEYOND_LIMIT)
    assert aspects(done) == [aspect]
    assert what in done.stdout


@pytest.mark.parametrize(
    ("name", "fault", "dims", "advice"),
    [
        ("qwen3", "mean", None, '"LAST"}\'. TEI: --pooling last-token. llama.cpp: --pooling last.'),
        ("e5", "cls", None, '"MEAN"}\'. TEI: --pooling mean. llama.cpp: leave --pooling out.'),
        ("qwen3", "refuses-dimensions", "32", "--hf-overrides"),
        ("qwen3", "refuses-dimensions", "48", "vLLM answers trained dimensions only: request one of 64, 32."),
    ],
)
def test_advice_is_for_the_directory(
    name: str, fault: str, dims: str | None, advice: str, url: str, models: dict[str, Path]
) -> None:
    done = serve_check(f"{url}/{name}/{fault}", "--model", models[name], *(["--dims", dims] if dims else []))
    assert done.returncode == 1 and advice in done.stdout, done.stdout + done.stderr


def test_faults_that_come_together_are_both_named(url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/qwen3/no-eos-and-prompt", "--model", models["qwen3"])
    assert (done.returncode, aspects(done)) == (1, ["EOS", "prompt"])


def test_truncation_is_found_with_another_norm(url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/qwen3/unnormalised-slices", "--model", models["qwen3"])
    assert done.returncode == 1 and aspects(done) == ["normalisation", "truncation"], done.stdout


@pytest.mark.parametrize(
    ("name", "fault", "aspect"),
    [("qwen3", "nan-together", "NaN"), ("qwen3", "short-together", "dimension"), ("causal", "nan-together", "NaN")],
)
def test_answers_lost_in_one_request_are_found(
    name: str, fault: str, aspect: str, url: str, models: dict[str, Path]
) -> None:
    done = serve_check(f"{url}/{name}/{fault}", "--model", models[name])
    assert done.returncode == 1 and aspects(done) == [aspect], done.stdout + done.stderr


@pytest.mark.parametrize("address", ["http://localhost:abc", "http://[::1"])
def test_invalid_addresses(address: str, models: dict[str, Path]) -> None:
    done = serve_check(address, "--model", models["qwen3"])
    assert done.returncode == 2 and f"error: {address} is not an address" in done.stderr


def test_another_model_is_not_explained(url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/other/healthy", "--model", models["qwen3"])
    assert (done.returncode, aspects(done)) == (1, ["model"])
    wider = serve_check(f"{url}/other/healthy", "--model", models["e5"])
    assert (wider.returncode, aspects(wider)) == (1, ["dimension"])


@pytest.mark.parametrize(
    ("name", "fault", "aspect"),
    [
        ("e5", "bare", "special tokens"),
        pytest.param("e5", "doubled-prompt", "prompt", marks=pytest.mark.slow),
        pytest.param("e5", "cls", "pooling", marks=pytest.mark.slow),
        pytest.param("e5", "left-unmasked", "padding", marks=pytest.mark.slow),
        ("plain", "normalises", "normalisation"),
    ],
)
def test_faults_of_an_encoder_are_named(name: str, fault: str, aspect: str, url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/{name}/{fault}", "--model", models[name])
    assert (done.returncode, aspects(done)) == (1, [aspect]), done.stdout


def test_reference_equals_sentence_transformers(models: dict[str, Path]) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["find files", "向量检索", " a \n"]
    for name in ("qwen3", "plain", "e5"):
        reference = EmbedderReference.load(str(models[name]))
        expected = SentenceTransformer(str(models[name]), device="cpu").encode(texts)
        assert reference.expected_embeddings(texts) == pytest.approx(expected, abs=1e-5)


RERANKER_FAULTS = {
    "logits": ("scores", "answers logits, no sigmoid is taken"),
    "two-sigmoids": ("scores", "answers the sigmoid of the sigmoid"),
    "inverted": ("scores", "answers probabilities of no"),
    "no-template": ("template", "prompts have the query and the document alone"),
    "no-suffix": ("template", "prompts have no suffix"),
    "empty-lines": ("template", "prompts have empty lines between parts"),
    "default-instruction": ("instruction", "in place of 'Given a shell task, find the command'"),
    "no-instruction": ("instruction", "prompts have no instruction"),
    "swapped": ("sides", "the document as the query"),
    "eos": ("EOS", "<|endoftext|> at the end"),
    "nan": ("NaN", "7 of 7 answers hold NaN"),
    "right-last": ("padding", "scores change when documents are sent together"),
}


@pytest.mark.parametrize("fault", sampled(RERANKER_FAULTS))
def test_faults_of_a_reranker_are_named(fault: str, url: str, models: dict[str, Path]) -> None:
    aspect, what = RERANKER_FAULTS[fault]
    for name in ("causal", "classifier") if fault in ("logits", "inverted") else ("causal",):
        done = serve_check(f"{url}/{name}/{fault}", "--model", models[name])
        assert done.returncode == 1, done.stdout + done.stderr
        assert aspects(done) == [aspect]
        assert what in done.stdout


@pytest.mark.parametrize(
    ("fault", "asked"),
    [("tei", "/rerank, asked for texts, model not named"), ("pairs-only", "/v1/score, asked for pairs, model tiny")],
)
@pytest.mark.parametrize("name", ["classifier", "encoder"])
def test_forms_of_requests_to_rerankers(name: str, fault: str, asked: str, url: str, models: dict[str, Path]) -> None:
    done = serve_check(f"{url}/{name}/{fault}", "--model", models[name])
    assert done.returncode == 0, done.stdout + done.stderr
    assert asked in done.stdout


@pytest.mark.parametrize(
    ("name", "fault", "aspect", "what"),
    [
        ("encoder", "logits", "scores", "answers logits, no sigmoid is taken"),
        ("instructed", "inverted", "scores", "answers probabilities of no"),
        ("encoder", "one-text", "template", "prompts have both texts as one"),
        ("encoder", "one-type", "template", "prompts have one token type for both texts"),
        ("encoder", "swapped-pair", "sides", "the document as the query"),
        ("instructed", "bare-query", "instruction", "prompts have no instruction"),
    ],
)
def test_faults_of_an_encoder_reranker_are_named(
    name: str, fault: str, aspect: str, what: str, url: str, models: dict[str, Path]
) -> None:
    done = serve_check(f"{url}/{name}/{fault}", "--model", models[name])
    assert done.returncode == 1, done.stdout + done.stderr
    assert aspects(done) == [aspect]
    assert what in done.stdout


class Answers:
    """In place of a server: any function of logits. It stands at the network's edge."""

    endpoint = None
    chosen_model = "model not named"

    def __init__(self, answer: Callable[[list[tuple[str, str]]], np.ndarray]) -> None:
        self.answer = answer

    def find_score_endpoint(self) -> "Answers":
        return self

    path, form = "/rerank", "texts"

    def score(self, score_endpoint: object, query: str, documents: list[str]) -> np.ndarray:
        return self.answer([(query, document) for document in documents])

    def url(self, path: str) -> str:
        return path


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_large_logits_in_a_shorter_type_fit(noise: float, scale: float, models: dict[str, Path]) -> None:
    reference = RerankerReference.load(str(models["causal"]))
    rng = np.random.default_rng(0)
    large = RerankerReference(
        reference.source, reference.tokenizer, reference.settings, lambda prompts: scale * reference.logits(prompts)
    )

    def rounded(pairs: list[tuple[str, str]]) -> np.ndarray:
        logits = large.logits_of(next(large.variants()), pairs)
        return 1 / (1 + np.exp(-logits * (1 + noise * rng.standard_normal(len(pairs)))))

    report: ServerReport = check_reranker(Answers(rounded), large)  # type: ignore[arg-type]
    assert report.findings == []


def assert_not_checked(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("address", "arguments", "message"),
    [
        ("localhost:8000", [], "is not an address"),
        ("{url}/qwen3/healthy", ["--dims", "128"], "more than the model's embedding has, 64"),
        ("{url}/qwen3/healthy", ["--model", "nowhere"], "no directory with a config.json"),
        ("{url}/qwen3/healthy", ["--api_key_env", "NESTLING_NO_SUCH_KEY"], "no such variable"),
        ("{url}/qwen3/healthy", ["--least_cosin", "0.9"], "did you mean 'least_cosine'"),
        ("http://127.0.0.1:9", [], "is the server up?"),
        ("{url}/qwen3/not-json", [], "expected JSON, got '<html>"),
        ("{url}/qwen3/slow", ["--timeout", "0.3"], "no answer within 0.3 s"),
        ("{url}/qwen3/key", [], "answers 401, wrong key"),
        ("{url}/causal/healthy", [], "/v1/embeddings answers 404"),
        ("{url}/causal/no-endpoint", ["--model", "{causal}"], "no endpoint of the server reranks: "),
        ("{url}/causal/healthy", ["--model", "{causal}", "--dims", "16"], "is a reranker, which answers scores"),
        ("{url}/causal/healthy", ["--kind", "rerank", "--dims", "16"], "dims are an embedder's"),
    ],
)
def test_servers_that_cannot_be_checked(
    address: str, arguments: list[str], message: str, url: str, models: dict[str, Path]
) -> None:
    given = [each.format(**models) for each in arguments]
    done = serve_check(address.format(url=url), "--model", models["qwen3"], *given)
    assert_not_checked(done, message)


def test_the_key_comes_from_the_environment(url: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTLING_TEST_KEY", "secret")
    done = serve_check(f"{url}/qwen3/key", "--model", models["qwen3"], "--api_key_env", "NESTLING_TEST_KEY")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("faults", "distances", "expected"),
    [
        ([0, 1, 2], [0.3, 0.2, 0.15], 0),  # none much nearer
        ([0, 1, 2], [0.3, 0.05, 0.04], 1),
        ([0, 1, 1], [0.3, 0.05, 0.04], 2),
        ([0, 1, 2], [5e-7, 1e-9, 0.0], 0),  # all the same but for noise
    ],
)
def test_the_simplest_explanation_is_taken(faults: list[int], distances: list[float], expected: int) -> None:
    assert simplest_explanation(faults, distances, 1e-6) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ("http://h:1", None)),
        ("http://h:1/v1/", ("http://h:1", None)),
        ("https://h/deep/v1/embeddings", ("https://h/deep", "/v1/embeddings")),
        ("http://h/rerank", ("http://h", "/rerank")),
    ],
)
def test_addresses(url: str, expected: tuple[str, str | None]) -> None:
    assert split_url(url) == expected


@pytest.mark.parametrize("listed", [{"data": ["m"]}, {"data": {"a": 1}}, {"data": []}, ["m"], None])
def test_lists_of_models_that_name_none(listed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "_ask", lambda *arguments: listed)
    assert Server("http://localhost").model is None


def test_a_base_that_is_listed_before_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "_ask", lambda *arguments: {"data": [{"id": "base"}, {"id": "mine"}]})
    line = "model base, the first of base, mine; --api_model chooses another"
    assert Server("http://localhost").chosen_model == line
    assert Server("http://localhost", model="mine").chosen_model == "model mine"


def test_scores_are_numbers_and_null_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("http://localhost", model="m")
    monkeypatch.setattr(server, "post", lambda path, body: [{"index": 0, "score": body["texts"][0]}])
    score_endpoint = ScoreEndpoint("/rerank", "texts")
    assert np.isnan(server.score(score_endpoint, "q", [None]))  # type: ignore[list-item]  # what JSON's null becomes
    with pytest.raises(ValueError, match=r"expected scores, got \['high'\]"):
        server.score(score_endpoint, "q", ["high"])


def test_the_command_itself(url: str, models: dict[str, Path]) -> None:
    command = [sys.executable, ROOT / "scripts" / "serve_check.py"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "--least_cosine" in shown.stdout
    arguments = [f"{url}/causal/no-suffix", "--model", models["causal"]]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert aspects(done) == ["template"]


def test_control_characters_of_a_server_are_not_printed(models: dict[str, Path]) -> None:
    body = json.dumps({"error": "bad \x1b[2J\x07 key"}).encode() + b"\x1b]0;title\x07\r\xc2\x9b"
    with hostile(lambda request: [answer(body, "400 bad \x1b[2J")]) as server:
        command = [sys.executable, ROOT / "scripts" / "serve_check.py", server.url, "--model", models["causal"]]
        with warm.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
            _, said = process.communicate()
    assert process.returncode == 2
    message = said.decode().partition("error: ")[2]  # behind the bar of transformers
    assert "answers 400" in message
    assert not re.search(r"[\x1b\x07\r\x80-\x9f]", message)


def test_a_classifier_without_a_template_is_refused(tmp_path: Path, bert: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((bert / name).read_bytes())
    config = json.loads((bert / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="without the chat template of a reranker"):
        RerankerReference.load(str(tmp_path / "model"))
