"""A tiny Qwen3 as the writer: random, which answers nonsense, and trained in the test to answer as it should."""

import json
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nestling.synthesis.brief import Brief, Choices
from nestling.synthesis.conversation import Outcome, Question, Reply, converse
from nestling.synthesis.prompts import query_prompt, setup_prompt
from nestling.synthesis.writers.local import LocalModel, SeededDraw
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


def questions(count: int) -> list[Question]:
    return [Question([{"role": "user", "content": f"{'list files ' * (1 + i % 3)} {i}"}], i) for i in range(count)]


def test_a_model_without_a_chat_template_is_refused(qwen3_base: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        load(qwen3_base, 0)


def test_greedy_answers_are_those_of_one_prompt_after_the_other(chat: Path) -> None:
    writer = load(chat, 0)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    for question, reply in zip(questions(4), writer.answer(questions(4)), strict=True):
        tokens = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, return_dict=False)
        prompt = len(tokens)
        for _ in range(12):
            with torch.inference_mode():
                tokens.append(int(writer.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert reply == Reply(tokenizer.decode(tokens[prompt:], skip_special_tokens=True), "length", prompt, 12)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_draws_do_not_depend_on_the_batch(chat: Path, batch_size: int) -> None:
    heard: dict[int, Reply] = {}

    def talk(question: Question) -> Generator[Question, Reply, None]:
        heard[question.seed] = yield question

    writer = load(chat, 1.0, batch_size=batch_size)
    ended: list[None] = []
    writer.hold(map(talk, questions(8)), lambda: ended.append(None))
    alone = {question.seed: writer.answer([question])[0] for question in questions(8)}
    assert heard == alone and len(ended) == 8
    assert len({reply.text for reply in heard.values()}) == 8


def test_the_largest_noisy_score_is_a_draw_from_softmax() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).expand(4000, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = Counter(SeededDraw(0.8, generators)(torch.empty(0), scores).argmax(dim=1).tolist())
    for place, share in enumerate((scores[0] / 0.8).softmax(dim=0).tolist()):
        assert drawn[place] / 4000 == pytest.approx(share, abs=0.025)


CHOICES = Choices({"keywords": "terms"}, {"easy": "common words"}, {"2-6": 1}, {"document": 1})
PASSAGES = {"ls lists files": "show files", "rm removes files": "delete files", "cp copies a file": "copy a file"}
SETUP = '{"character": 2, "question_type": "keywords", "difficulty": "easy"}'


def brief(seed: int) -> Brief:
    return Brief(("a nurse", "a cook"), 2, 6, "document", seed)


def overfit(folder: Path) -> Path:
    """Train the model until it answers both prompts of three passages."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = []
    for passage, query in PASSAGES.items():
        second = query_prompt(passage, "a cook", "keywords", "easy", brief(0), CHOICES)
        answers = {setup_prompt(passage, brief(0), CHOICES): SETUP, second: json.dumps({"query": query})}
        for prompt, answer in answers.items():
            message = [{"role": "user", "content": prompt}]
            begin = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
            rows.append((begin, tokenizer(answer + "<|im_end|>")["input_ids"]))
    length = max(len(begin) + len(end) for begin, end in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for i, (begin, end) in enumerate(rows):
        ids[i, : len(begin) + len(end)] = torch.tensor(begin + end)
        labels[i, len(begin) : len(begin) + len(end)] = torch.tensor(end)
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


def outcomes(writer: LocalModel) -> list[Outcome]:
    found: list[Outcome] = []

    def talk(passage: str, seed: int) -> Generator[Question, Reply, None]:
        found.append((yield from converse(passage, brief(seed), CHOICES, 2)))

    writer.hold((talk(passage, seed) for seed, passage in enumerate(PASSAGES)), lambda: None)
    return found


def test_a_random_model_makes_no_query(chat: Path) -> None:
    writer = load(chat, 0.7, max_tokens=5, batch_size=2)
    assert [each.query for each in outcomes(writer)] == [None] * 3
    assert {each.failure for each in outcomes(writer)} <= {"answer cut off", "empty answer", "no JSON object"}


def test_a_trained_model_holds_whole_conversations(chat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    tiny_qwen3(folder, sentence_transformers=False)
    for name in ("chat_template.jinja", "generation_config.json"):
        (folder / name).write_text((chat / name).read_text())
    writer = load(overfit(folder), 0, max_tokens=60, batch_size=2)
    found = outcomes(writer)
    assert {each.query for each in found} == set(PASSAGES.values())
    assert all(each.setup is not None and each.setup.character == "a cook" and not each.rejected for each in found)
    assert writer.requests == 6
