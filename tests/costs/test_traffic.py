"""What operations read, write and launch, against counts by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from nestling.costs.layer_traffic import LayerKind, layer_traffic
from nestling.costs.planned_kernels import KernelPlan
from nestling.costs.traffic import NONE, ROOFLINES, Roofline, Traffic, TrafficCounter

LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
SMALL = Qwen3Config(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=160,
    vocab_size=300,
    architectures=["Qwen3ForCausalLM"],
)


def counted(compute: Callable[[], object]) -> Traffic:
    with TrafficCounter() as counter:
        compute()
    return counter.found


def on_meta(*shape: int, **settings: Any) -> Tensor:
    return torch.empty(shape, device="meta", **settings)


def test_a_linear_layer() -> None:
    """A thin product takes the time of its bytes, a large one that of its operations; transposing is free."""
    thin = nn.Linear(64, 32, bias=False, device="meta")
    operations = 2 * 8 * 64 * 32
    assert counted(lambda: thin(on_meta(8, 64))) == Traffic(
        launches=1, bytes=4 * (8 * 64 + 64 * 32 + 8 * 32), operations=0, work=operations
    )
    large, operations = nn.Linear(4096, 2048, bias=False, device="meta", dtype=torch.bfloat16), 2 * 4096 * 2048 * 1000
    found = counted(lambda: large(on_meta(1000, 4096, dtype=torch.bfloat16)))
    assert found == Traffic(launches=1, bytes=0, operations=operations, work=operations)


def test_backward_of_a_linear_layer() -> None:
    """A product for the gradient of the weight and one for that of the input."""
    layer, operations = nn.Linear(64, 32, bias=False, device="meta"), 2 * 8 * 64 * 32
    output = layer(on_meta(8, 64, requires_grad=True))
    gradient = on_meta(8, 32)
    found = counted(lambda: output.backward(gradient))
    assert found == Traffic(launches=2, bytes=2 * 4 * (8 * 64 + 64 * 32 + 8 * 32), operations=0, work=2 * operations)


def test_elementwise_operations_and_views() -> None:
    found = counted(lambda: (on_meta(6, 4) + on_meta(6, 1)).view(24).to(torch.bfloat16))
    assert found == Traffic(launches=2, bytes=4 * (24 + 6 + 24) + 24 * (4 + 2), operations=0, work=0)


def test_operations_of_attention() -> None:
    """Of 2 texts of 32 tokens with 4 heads of 16; backward computes the scores again, which is no work."""
    shape, pairs = (2, 4, 32, 16), 2 * 4 * 32 * 32 * 16
    query, key, value = (torch.zeros(shape, requires_grad=True) for _ in range(3))
    with TrafficCounter() as counter:
        output = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert counter.found.launches == 1
    assert counter.found.work == 4 * pairs
    numbers = 4 * 2 * 4 * 32 * 16 + 2 * 4 * 32  # three inputs, the output, and the logarithm of the sum for backward
    assert counter.found.bytes == 4 * numbers
    found = counted(lambda: output.sum().backward())
    assert found.work == 8 * pairs


def test_time_and_share_of_peak() -> None:
    """A second of the memory and one of the products; a second forward pass takes time, and is work if it counts."""
    gpu = Roofline(bandwidth=100.0, products=200.0, published=400.0)
    forward, backward = Traffic(bytes=100, operations=200, work=300), Traffic(bytes=200, operations=200, work=500)
    assert gpu.seconds(forward) == 2
    assert gpu.share(forward, backward) == 800 / 5 / 400
    assert gpu.share(forward, backward, forwards=2) == 800 / 7 / 400
    assert gpu.share(forward, backward, forwards=2, counted=2) == 1100 / 7 / 400
    assert gpu.share(forward, NONE) == 300 / 2 / 400
    assert ROOFLINES["a100-80"].bandwidth / 2.039e12 == pytest.approx(2.6 / 3.35)
    assert ROOFLINES["l4"].products / ROOFLINES["l4"].published == pytest.approx(800 / 989)


def test_kernels_of_a_plan() -> None:
    """Elementwise operations in one kernel, a product in another; nothing is computed."""
    plan = KernelPlan()

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        return (x.sin() + 1) @ weight

    torch._dynamo.reset()
    output = torch.compile(compute, backend=plan)(torch.zeros(32, 64), torch.zeros(64, 16))
    assert output.shape == (32, 16)
    sine, product = 4 * 2 * 32 * 64, 4 * (32 * 64 + 64 * 16 + 32 * 16)
    assert plan.found == Traffic(launches=2, bytes=sine + product, operations=0, work=2 * 32 * 64 * 16)


def small_layer(kind: LayerKind, **settings: Any) -> tuple[Traffic, Traffic]:
    return layer_traffic(SMALL, lora=settings.pop("lora", LORA), length=16, positions=160, kind=kind)


def test_adapters_beside_those_of_peft() -> None:
    """Fewer launches and bytes for the same work; without adapters there is no difference."""
    for now, before in zip(small_layer("plain"), small_layer("peft"), strict=True):
        assert now.launches < before.launches
        assert now.bytes < 0.9 * before.bytes
        assert now.work == before.work
    assert small_layer("plain", lora=None) == small_layer("peft", lora=None)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's compiler asks for it, and hides the rest
def test_a_compiled_layer_beside_a_plain_one() -> None:
    for plain, compiled in zip(small_layer("plain", lora=None), small_layer("compiled", lora=None), strict=True):
        assert compiled.launches < 0.5 * plain.launches
        assert compiled.bytes < 0.5 * plain.bytes
        assert compiled.work == pytest.approx(plain.work)


def test_work_of_a_layer() -> None:
    """Weights of a layer, and attention to 16 tokens, whose gradients take twice that."""
    forward, backward = small_layer("plain", lora=None)
    weights = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 160
    assert forward.work == 2 * weights + 4 * 16 * 4 * 16
    assert backward.work == 2 * forward.work
