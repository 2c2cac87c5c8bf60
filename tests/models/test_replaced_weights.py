"""Computing in float32 with weights of another type, beside plain copies in float32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from allocations import Allocations
from nestling.models.answer_head import AnswerHead
from nestling.models.replaced_weights import weights_replaced
from tiny import tiny_qwen3

IDS = torch.tensor([[5, 6, 7, 8], [9, 5, 5, 6]])


def test_a_model_computes_as_its_copy_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.models.replaced_weights.PIECE", 4096)
    folder = tiny_qwen3(tmp_path, dtype=torch.bfloat16, sentence_transformers=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    before = {name: (each.data_ptr(), each.dtype) for name, each in model.named_parameters()}
    table = model.get_input_embeddings().weight
    with torch.no_grad(), weights_replaced(model), Allocations() as made:
        found = model(input_ids=IDS, logits_to_keep=1).logits
    assert not any(count >= table.numel() for _, count in made.found)
    assert {name: (each.data_ptr(), each.dtype) for name, each in model.named_parameters()} == before
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(input_ids=IDS, logits_to_keep=1).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_the_head_of_a_reranker(full: bool) -> None:
    torch.manual_seed(0)
    layer, states = nn.Linear(8, 50, bias=True), torch.randn(3, 8)
    head = AnswerHead(layer.bfloat16(), no=3, yes=7)
    expected = AnswerHead(nn.Linear(8, 50), no=3, yes=7)
    expected.load_state_dict({name: each.float() for name, each in head.state_dict().items()})
    with torch.no_grad(), weights_replaced(head):
        found = head(states, full_vocabulary=full)
    torch.testing.assert_close(found, expected(states, full_vocabulary=full).detach())
    assert head.weight.dtype == torch.bfloat16


def test_tables_of_other_kinds_compute_with_whole_weights() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * torch.tensor(0.3).to(self.weight.dtype)

    table = Scaled(10, 4).bfloat16()
    with torch.no_grad(), weights_replaced(table):
        found = table(IDS)
    torch.testing.assert_close(found, table.weight.float()[IDS] * 0.3)
