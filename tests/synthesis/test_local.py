"""A tiny Qwen3 as the chat model: random, with invalid answers, and trained in the test to give valid ones."""

import json
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nestling.synthesis import prompts
from nestling.synthesis.chat_models.local import LocalModel, SeededSampler
from nestling.synthesis.conversation import ChatRequest, Completion, ConversationResult, converse
from nestling.synthesis.prompts import configuration_prompt, query_prompt
from nestling.synthesis.query_spec import QueryConfiguration, QueryOptions, QuerySpec
from tiny import tiny_qwen3

TEMPLATE = (
    "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny causal language model with a chat template, whose settings would have it sample."""
    folder = tiny_qwen3(tmp_path_factory.mktemp("chat"), sentence_transformers=False)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path, temperature: float, *, batch_size: int = 4, max_tokens: int = 12) -> LocalModel:
    return LocalModel.from_pretrained(folder, temperature=temperature, max_tokens=max_tokens, batch_size=batch_size)


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": f"{'list files ' * (1 + i % 3)} {i}"}], i) for i in range(count)]


def test_a_model_without_a_chat_template_is_refused(qwen3_base: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        load(qwen3_base, 0)


def test_greedy_completions_do_not_depend_on_the_batch(chat: Path) -> None:
    model = load(chat, 0)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    for request, completion in zip(requests(4), model.complete(requests(4)), strict=True):
        tokens = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, return_dict=False)
        prompt = len(tokens)
        for _ in range(12):
            with torch.inference_mode():
                tokens.append(int(model.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert completion == Completion(
            tokenizer.decode(tokens[prompt:], skip_special_tokens=True), "length", prompt, 12
        )


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_samples_do_not_depend_on_the_batch(chat: Path, batch_size: int) -> None:
    completions: dict[int, Completion] = {}

    def conversation(request: ChatRequest) -> Generator[ChatRequest, Completion, None]:
        completions[request.seed] = yield request

    model = load(chat, 1.0, batch_size=batch_size)
    ended: list[None] = []
    model.run_conversations(map(conversation, requests(8)), lambda: ended.append(None))
    alone = {request.seed: model.complete([request])[0] for request in requests(8)}
    assert completions == alone and len(ended) == 8
    assert len({completion.text for completion in completions.values()}) == 8


def test_the_largest_noisy_score_is_a_sample_of_softmax() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).expand(4000, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    sampled = Counter(SeededSampler(0.8, generators)(torch.empty(0), scores).argmax(dim=1).tolist())
    for token, probability in enumerate((scores[0] / 0.8).softmax(dim=0).tolist()):
        assert sampled[token] / 4000 == pytest.approx(probability, abs=0.025)


OPTIONS = QueryOptions({"keywords": "terms"}, {"easy": "common words"}, {"2-6": 1}, {"document": 1})
PASSAGES = {"ls lists files": "show files", "rm removes files": "delete files", "cp copies a file": "copy a file"}
CONFIGURATION = '{"character": 2, "question_type": "keywords", "difficulty": "easy"}'


def spec(seed: int) -> QuerySpec:
    return QuerySpec(("a nurse", "a cook"), 2, 6, "document", seed)


def overfit(folder: Path) -> Path:
    """Train the model until it answers both prompts of three passages."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = []
    for passage, query in PASSAGES.items():
        first = configuration_prompt([passage], spec(0), OPTIONS)
        second = query_prompt([passage], QueryConfiguration("a cook", "keywords", "easy"), spec(0), OPTIONS)
        answers = {first: CONFIGURATION, second: json.dumps({"query": query})}
        for prompt, answer in answers.items():
            message = [{"role": "user", "content": prompt}]
            prompt_ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
            rows.append((prompt_ids, tokenizer(answer + "<|im_end|>")["input_ids"]))
    length = max(len(prompt_ids) + len(answer_ids) for prompt_ids, answer_ids in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for i, (prompt_ids, answer_ids) in enumerate(rows):
        ids[i, : len(prompt_ids) + len(answer_ids)] = torch.tensor(prompt_ids + answer_ids)
        labels[i, len(prompt_ids) : len(prompt_ids) + len(answer_ids)] = torch.tensor(answer_ids)
    for _ in range(300):
        loss = model(ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    model.save_pretrained(folder)
    return folder


def results(model: LocalModel) -> list[ConversationResult]:
    found: list[ConversationResult] = []

    def conversation(passage: str, seed: int) -> Generator[ChatRequest, Completion, None]:
        found.append((yield from converse([passage], spec(seed), OPTIONS, 2)))

    model.run_conversations((conversation(passage, seed) for seed, passage in enumerate(PASSAGES)), lambda: None)
    return found


def test_a_random_model_makes_no_query(chat: Path) -> None:
    model = load(chat, 0.7, max_tokens=5, batch_size=2)
    assert [each.query for each in results(model)] == [None] * 3
    assert {each.failure for each in results(model)} <= {"answer cut off", "empty answer", "no JSON object"}


def test_a_trained_model_completes_conversations(chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of a few words, which are learnt in a fraction of the time."""
    monkeypatch.setattr(prompts, "CONFIGURATION", "choose {passages} {characters}")
    monkeypatch.setattr(prompts, "QUERY", "write {passages} {character}")
    folder = tmp_path / "trained"
    tiny_qwen3(folder, sentence_transformers=False)
    for name in ("chat_template.jinja", "generation_config.json"):
        (folder / name).write_text((chat / name).read_text())
    model = load(overfit(folder), 0, max_tokens=60, batch_size=2)
    found = results(model)
    assert {each.query for each in found} == set(PASSAGES.values())
    assert all(
        each.configuration is not None and each.configuration.character == "a cook" and not each.rejected
        for each in found
    )
    assert model.requests == 6
