"""The summary says which layers have adapters, and which matrices are left as they are."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from families.causal_models import tiny_causal
from nestling.models.adapters import attach_lora
from nestling.training.adapted import adapter_lines

ATTENTION = "2 self_attn.q_proj, 2 self_attn.k_proj, 2 self_attn.v_proj, 2 self_attn.o_proj"
EXPERTS = "2 experts.gate_up_proj, 2 experts.down_proj"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "qwen3",
            {"adapters": f"{ATTENTION}, 2 mlp.gate_proj, 2 mlp.up_proj, 2 mlp.down_proj"},
        ),
        ("granitemoe", {"adapters": ATTENTION, "not adapted": f"{EXPERTS}, 2 block_sparse_moe.router"}),
        ("qwen3_moe", {"adapters": f"{ATTENTION}, 2 mlp.gate, {EXPERTS}"}),
    ],
)
def test_lines_of_a_model(name: str, lines: dict[str, str], qwen3_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal(name, tmp_path / "model", qwen3_base))
    assert adapter_lines(model) == {}
    found = adapter_lines(attach_lora(model, r=4, alpha=8, dropout=0.0))
    assert {key: sorted(str(value).split(", ")) for key, value in found.items()} == {
        key: sorted(value.split(", ")) for key, value in lines.items()
    }
