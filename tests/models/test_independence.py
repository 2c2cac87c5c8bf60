"""What a model does with texts beside each other is tried when it is loaded, and kept for the next time."""

import json
from pathlib import Path

import pytest
import torch
from architectures import Architecture, decoder, encoder
from family_models import write_embedder
from transformers import AutoModel

from nestling.console import say_once
from nestling.models import independence
from nestling.models.embedder import Embedder
from nestling.models.first_layers import FirstLayers
from nestling.models.independence import Findings, cached_findings, require_independent_texts, try_out
from nestling.models.reranker import Reranker
from nestling.records.store import default_cache

TEXTS = ["a", "list the files that changed during the last seven days", "find files by size"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    say_once.cache_clear()


def alone_and_together(embedder: Embedder) -> tuple[torch.Tensor, torch.Tensor]:
    one_by_one = [embedder.encode([text], kind="document", max_length=64) for text in TEXTS]
    return torch.cat(one_by_one), embedder.encode(TEXTS, kind="document", max_length=64)


def test_a_causal_model_is_found_to_be_one_and_reads_packed_texts(qwen3: Path) -> None:
    embedder = Embedder.from_pretrained(qwen3, attn_implementation="varlen")
    assert embedder.causal and embedder.padding_free
    assert try_out(embedder) == Findings(causal=True, padded=True, packed=True)


def test_an_encoder_is_found_not_to_be_causal_and_reads_packed_texts(bert: Path) -> None:
    embedder = Embedder.from_pretrained(bert, attn_implementation="varlen")
    assert not embedder.causal and embedder.padding_free
    assert try_out(embedder) == Findings(causal=False, padded=True, packed=True)
    torch.testing.assert_close(*alone_and_together(embedder))


def test_windows_of_an_encoder_reach_to_both_sides(tmp_path: Path) -> None:
    """ModernBERT's modules count one more than its config."""
    modernbert = encoder("modernbert", local_attention=12, global_attn_every_n_layers=2)
    folder = write_embedder(modernbert, tmp_path / "model")
    embedder = Embedder.from_pretrained(folder, attn_implementation="varlen")
    assert embedder.padding_free and embedder.config.local_attention == 12
    torch.testing.assert_close(*alone_and_together(embedder))
    padded = Embedder.from_pretrained(folder, attn_implementation="sdpa")
    torch.testing.assert_close(alone_and_together(padded)[1], alone_and_together(embedder)[1])


def test_an_encoder_whose_attention_has_a_bias_is_padded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_embedder(encoder("mpnet"), tmp_path / "model")
    embedder = Embedder.from_pretrained(folder, attn_implementation="varlen")
    assert not embedder.causal and not embedder.padding_free
    assert f"{folder}: MPNetModel cannot read packed texts one by one; they are padded" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_a_bidirectional_decoder_does_not_attend_to_padding(name: str, tmp_path: Path) -> None:
    """Cosines were 0.06 to 0.8: the mask was left out by the name of the class."""
    folder = write_embedder(decoder("bidirectional", name, is_causal=False), tmp_path / "model")
    embedder = Embedder.from_pretrained(folder, attn_implementation="varlen")
    assert not embedder.causal and not embedder.padding_free
    torch.testing.assert_close(*alone_and_together(embedder), atol=1e-6, rtol=0)


def test_what_a_config_does_not_say_is_found_as_well(qwen3: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with a model may ignore the settings of transformers."""
    for says in (True, False):
        monkeypatch.setattr("nestling.models.token_model.is_causal", lambda config, says=says: says)
        assert Embedder.from_pretrained(qwen3).causal
        assert not Embedder.from_pretrained(bert).causal


def test_layers_that_carry_a_state_are_padded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_embedder(decoder("lfm2", layer_types=["conv", "full_attention"]), tmp_path / "model")
    embedder = Embedder.from_pretrained(folder, attn_implementation="varlen")
    assert embedder.causal and not embedder.padding_free
    assert embedder.config._attn_implementation == "sdpa"
    assert capsys.readouterr().err.count("cannot read packed texts one by one; they are padded") == 1
    torch.testing.assert_close(*alone_and_together(embedder), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", [encoder("esm"), encoder("fnet")])
def test_a_model_whose_embeddings_depend_on_the_batch_is_refused(architecture: Architecture, tmp_path: Path) -> None:
    folder = write_embedder(architecture, tmp_path / "model")
    for _ in range(2):  # tried, and from the cache
        with pytest.raises(
            ValueError, match=r"beside a longer text than alone, so that embeddings would depend on the ba"
        ):
            Embedder.from_pretrained(folder)


def test_a_reranker_that_mixes_packed_prompts_is_padded_and_shares_no_prefixes(
    qwen3_reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reranker.from_pretrained(qwen3_reranker).share_prefix
    monkeypatch.setattr(independence, "cached_findings", lambda model: Findings(True, True, packed=False))
    reranker = Reranker.from_pretrained(qwen3_reranker)
    assert not reranker.padding_free and not reranker.share_prefix


def test_bfloat16_weights_are_tried_in_float32_and_stay_as_they_are(qwen3: Path) -> None:
    embedder = Embedder.from_pretrained(qwen3, dtype=torch.bfloat16, attn_implementation="varlen").train()
    before = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    random = torch.random.get_rng_state()
    assert try_out(embedder) == Findings(causal=True, padded=True, packed=True)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert embedder.training and all(module.training for module in embedder.backbone.modules())
    for name, tensor in embedder.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name])


def test_a_sliding_window_is_tried_although_it_is_longer_than_the_texts(tmp_path: Path) -> None:
    """llama4's chunks of 8192 tokens would be ignored by varlen, which a few tokens do not show."""
    settings = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
    folder = write_embedder(decoder("gemma3_text", **settings), tmp_path / "windows")
    embedder = Embedder.from_pretrained(folder, attn_implementation="varlen")
    assert embedder.padding_free and embedder.config.sliding_window == 32
    assert {getattr(module, "sliding_window", None) for module in embedder.backbone.modules()} == {32, None}
    chunked = write_embedder(decoder("llama4_text", attention_chunk_size=8192), tmp_path / "chunks")
    assert not Embedder.from_pretrained(chunked, attn_implementation="varlen").padding_free


def test_findings_are_kept_by_config_and_attention(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def count(model: Embedder) -> Findings | None:
        tried.append(model.config._attn_implementation)
        return try_out(model)

    monkeypatch.setattr(independence, "try_out", count)
    for attention in ("sdpa", "varlen", "sdpa", "varlen"):
        Embedder.from_pretrained(qwen3, attn_implementation=attention)
    assert tried == ["sdpa", "varlen"]
    for path in (default_cache() / "independence").iterdir():
        path.write_text('{"causal": tr')
    Embedder.from_pretrained(qwen3, attn_implementation="sdpa")
    assert tried == ["sdpa", "varlen", "sdpa"]


def test_a_cache_that_cannot_be_written_is_no_error(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "file" / "cache"))
    assert Embedder.from_pretrained(qwen3).causal


def test_weights_that_say_nothing_are_not_judged(qwen3: Path) -> None:
    """Nothing can be seen of a model whose weights are 0 or no numbers; the findings would be kept for others."""
    embedder = Embedder.from_pretrained(qwen3)
    for path in (default_cache() / "independence").iterdir():
        path.unlink()
    for value in (0.0, float("nan")):
        for parameter in embedder.parameters():
            parameter.data.fill_(value)
        assert cached_findings(embedder) is None
        require_independent_texts(embedder, packed=False, padded_attention="sdpa")
    assert not [*(default_cache() / "independence").iterdir()]


@pytest.mark.parametrize("sharded", ["is_deepspeed_zero3_enabled", "is_fsdp_enabled"])
def test_weights_of_which_a_rank_has_parts_are_not_tried(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch, sharded: str
) -> None:
    monkeypatch.setattr(independence, sharded, lambda: True)
    monkeypatch.setattr(independence, "try_out", lambda model: pytest.fail("tried"))
    assert Embedder.from_pretrained(qwen3, attn_implementation="varlen").padding_free


def test_only_the_first_layers_run_until_each_kind_has_been_there(tmp_path: Path) -> None:
    types = [*["sliding_attention"] * 3, "full_attention"] * 3
    architecture = decoder("gemma3_text", num_hidden_layers=12, layer_types=types, sliding_window=8)
    embedder = Embedder.from_pretrained(write_embedder(architecture, tmp_path / "model"))
    layers = FirstLayers(embedder)
    assert layers.last is embedder.backbone.layers[3]
    ran: list[int] = []
    for i, layer in enumerate(embedder.backbone.layers):
        layer.register_forward_pre_hook(lambda module, inputs, i=i: ran.append(i))
    states = layers.states([[1, 2, 3]])
    assert ran == [0, 1, 2, 3]
    model = AutoModel.from_pretrained(tmp_path / "model")
    expected = model(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states[4]
    torch.testing.assert_close(states, expected.detach())


def test_the_files_of_findings_say_what_was_found(qwen3: Path) -> None:
    Embedder.from_pretrained(qwen3)
    (path,) = (default_cache() / "independence").iterdir()
    assert path.name.startswith("qwen3-")
    assert json.loads(path.read_text()) == {"causal": True, "padded": True, "packed": False}
