"""The cached step has the gradient of one graph over the whole batch, whatever it keeps."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import Chunk, TokenBatch, pack
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.models.token_lookup import look_up_in_place
from nestling.training.cached import ActivationBudget, cached_backward
from nestling.training.memory import activation_bytes, sample_chunk
from nestling.training.random_state import RandomState, RandomStates
from retried import SAVED, embed_retry, embed_step

EVERYTHING, NOTHING = ActivationBudget(float("inf"), 1.0), ActivationBudget(0.0, 1.0)
SOME = ActivationBudget(40.0, 1.0)  # graphs of 40 positions
Gradients = dict[str, Tensor]


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(3)
    lengths = [5, 17, 3, 9, 17, 8, 2, 11]
    ids = [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]
    return pack(ids, 24, 0)


def loss_of(embeddings: Tensor) -> Tensor:
    """Couples all texts, so that no chunk has a loss of its own."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return (torch.logsumexp(unit @ unit.T / 0.1, dim=1) * torch.arange(len(unit), device=unit.device)).mean()


def load(model: Path, *, dtype: torch.dtype = torch.float64, lora: float | None = None, own: float = 0.0) -> Embedder:
    embedder = Embedder.from_pretrained(model, dtype=dtype, dropout=own)
    if lora is not None:
        embedder.backbone = attach_lora(embedder.backbone, r=4, alpha=8, dropout=lora)
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:  # zeros at the start, under which A would have no gradient
                torch.nn.init.normal_(parameter, std=0.1)
        embedder.to(dtype)
    return embedder.train()


def gradients(embedder: Embedder) -> Gradients:
    return {name: each.grad.clone() for name, each in embedder.named_parameters() if each.grad is not None}


def cached(embedder: Embedder, budget: ActivationBudget) -> tuple[Tensor, Gradients]:
    embedder.zero_grad()
    torch.manual_seed(7)
    backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
    loss = cached_backward(backend, batch(), loss_of, budget)
    return loss, gradients(embedder)


def in_one_graph(embedder: Embedder) -> tuple[Tensor, Gradients]:
    embedder.zero_grad()
    torch.manual_seed(7)
    tokens = batch()
    embeddings = torch.cat([embedder(chunk) for chunk in tokens.chunks])[tokens.position]
    loss = loss_of(embeddings)
    loss.backward()
    return loss.detach(), gradients(embedder)


def test_no_more_is_kept_than_there_is_room_for_at_the_moment() -> None:
    chunks = [sample_chunk(8, 8, 100, torch.device("cpu")) for _ in range(5)]
    room = iter([1e9, 20.0, 0.0])
    budget = ActivationBudget(40.0, 1.0, lambda: next(room))
    assert [budget.kept(chunks) for _ in range(3)] == [5, 2, 0]


@pytest.mark.parametrize("budget", [NOTHING, SOME, EVERYTHING])
@pytest.mark.parametrize("lora", [None, 0.0])
@pytest.mark.parametrize("model", ["qwen3", "bert"])
def test_the_gradient_is_that_of_one_graph(
    model: str, lora: float | None, budget: ActivationBudget, request: pytest.FixtureRequest
) -> None:
    embedder = load(request.getfixturevalue(model), lora=lora)
    loss, found = cached(embedder, budget)
    expected_loss, expected = in_one_graph(embedder)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_each_text_alone_has_the_same_embedding(qwen3: Path) -> None:
    embedder, tokens = load(qwen3), batch()
    alone = pack(tokens.ids(), 1, 0)
    expected = torch.cat([embedder(chunk) for chunk in alone.chunks])[alone.position]
    torch.testing.assert_close(torch.cat([embedder(chunk) for chunk in tokens.chunks])[tokens.position], expected)


@pytest.mark.parametrize(("lora", "own"), [(0.3, 0.0), (None, 0.2)])
def test_dropout_is_replayed(lora: float | None, own: float, bert: Path) -> None:
    embedder = load(bert, lora=lora, own=own)
    expected_loss, expected = in_one_graph(embedder)
    for budget in (NOTHING, SOME, EVERYTHING):
        loss, found = cached(embedder, budget)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    without, _ = cached(load(bert), NOTHING)
    assert not torch.isclose(without, expected_loss)


def test_what_is_kept_changes_no_bit(qwen3: Path) -> None:
    embedder = load(qwen3, dtype=torch.float32, lora=0.3)
    embedder.precision = torch.bfloat16
    loss, found = cached(embedder, NOTHING)
    for budget in (SOME, EVERYTHING):
        again, gradient = cached(embedder, budget)
        assert torch.equal(loss, again)
        for name, expected in found.items():
            assert torch.equal(gradient[name], expected), name


def test_the_random_state_goes_on_after_the_step(bert: Path) -> None:
    embedder = load(bert, own=0.2)
    following = []
    for budget in (NOTHING, EVERYTHING):
        cached(embedder, budget)
        following.append(torch.rand(3))
    assert torch.equal(*following)


def test_gradient_checkpointing_changes_nothing(qwen3: Path) -> None:
    embedder = load(qwen3)
    _, expected = cached(embedder, NOTHING)
    embedder.checkpoint_activations_above(0)
    for budget in (NOTHING, EVERYTHING):
        _, found = cached(embedder, budget)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_last_chunks_are_kept_as_far_as_they_fit() -> None:
    chunks = batch().chunks
    positions = [chunk.positions for chunk in chunks]
    assert len(positions) > 3
    assert EVERYTHING.kept(chunks) == len(chunks)
    assert NOTHING.kept(chunks) == 0
    assert ActivationBudget(2.0 * sum(positions[-2:]), 2.0).kept(chunks) == 2
    assert ActivationBudget(2.0 * sum(positions[-2:]) - 1, 2.0).kept(chunks) == 1


def test_a_graph_is_measured_by_what_it_saves(qwen3: Path) -> None:
    embedder = load(qwen3, dtype=torch.float32)
    small, large = (
        activation_bytes(embedder, embedder, sample_chunk(8, positions, 60, torch.device("cpu")))
        for positions in (64, 128)
    )
    assert large == pytest.approx(2 * small, rel=0.02)
    embedder.checkpoint_activations_above(0)
    assert activation_bytes(embedder, embedder, sample_chunk(8, 64, 60, torch.device("cpu"))) < small / 4


@pytest.mark.parametrize("padding", [None, 2])
def test_the_lookup_in_place_has_the_gradient_of_the_ordinary_one(padding: int | None) -> None:
    table = torch.nn.Embedding(9, 4, padding_idx=padding, dtype=torch.float64)
    ids = torch.tensor([[1, 2, 1], [8, 2, 0]])
    factor = torch.randn(2, 3, 4, dtype=torch.float64)
    (table(ids) * factor).sum().backward()
    expected = table.weight.grad
    table.weight.grad = None
    for _ in range(2):
        found = look_up_in_place(table, ids)
        torch.testing.assert_close(found, table(ids))
        (found * factor).sum().backward()
    torch.testing.assert_close(table.weight.grad, 2 * expected)


def test_a_random_state_comes_back() -> None:
    state = RandomState.now(torch.device("cpu"))
    first, second = torch.rand(2), torch.rand(2)
    with state.restored():
        assert torch.equal(torch.rand(2), first)
    torch.testing.assert_close(torch.rand(2) != second, torch.tensor([True, True]))


def test_states_that_are_kept_together_come_back_each() -> None:
    states, drawn = RandomStates(3), []
    for i in range(3):
        states.keep(i, RandomState.now(torch.device("cpu")))
        drawn.append(torch.rand(2))
    for i in (2, 0, 1):
        with states[i].restored():
            assert torch.equal(torch.rand(2), drawn[i])


class Small:
    """A device that runs out of memory with chunks of more than `limit` positions."""

    def __init__(self, embedder: Embedder, limit: int) -> None:
        self.forward, self.limit = embedder.forward, limit

    def __call__(self, chunk: Chunk, *, in_place: bool = False) -> Tensor:
        if torch.is_grad_enabled() and chunk.positions > self.limit:
            raise torch.OutOfMemoryError("a full device")
        return self.forward(chunk, in_place=in_place)


def test_out_of_memory_repeats_the_step_with_smaller_chunks(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load(bert)
    expected_loss, expected = cached(embedder, NOTHING)
    monkeypatch.setattr(embedder, "forward", Small(embedder, 9))
    embedder.zero_grad()
    said: list[str] = []
    backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
    with pytest.raises(ValueError, match=f"chunk of 17 positions, which cannot be split further; saved {SAVED};"):
        embed_step(embed_retry(backend, said.append), batch(), loss_of, NOTHING)
    monkeypatch.undo()
    monkeypatch.setattr(embedder, "forward", Small(embedder, 17))
    embedder.zero_grad()
    said.clear()
    retry = embed_retry(backend, said.append)
    loss = embed_step(retry, batch(), loss_of, NOTHING)
    assert said[0].startswith("out of memory; the step is repeated in chunks of at most ")
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in gradients(embedder).items():
        torch.testing.assert_close(gradient, expected[name])
    halvings, lines = retry.halvings, len(said)
    embed_step(retry, batch(), loss_of, NOTHING)
    assert (retry.halvings, len(said)) == (halvings, lines), "the next step begins with the smaller chunks"


def one_of_two(embedder: Embedder, *, independent: bool) -> Plain:
    """A backend that believes in another rank."""
    backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
    backend.ranks, backend.independent = 2, independent
    return backend


@pytest.mark.parametrize(("independent", "limit"), [(False, 9), (True, 0)], ids=["sharded", "nothing fits"])
def test_ranks_that_cannot_end_the_step_are_told_what_to_resume_with(
    independent: bool, limit: int, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = load(bert)
    monkeypatch.setattr(embedder, "forward", Small(embedder, limit))
    with pytest.raises(ValueError, match="resume with --chunk_tokens 12"):
        embed_step(embed_retry(one_of_two(embedder, independent=independent), print), batch(), loss_of, NOTHING)


def test_independent_ranks_end_the_step(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load(bert)
    retry = embed_retry(one_of_two(embedder, independent=True), print)
    with monkeypatch.context() as small:
        small.setattr(embedder, "forward", Small(embedder, 9))
        assert embed_step(retry, batch(), loss_of, NOTHING).isfinite()
        assert retry.ran_out
    embed_step(retry, batch(), loss_of, NOTHING)
    assert not retry.ran_out
