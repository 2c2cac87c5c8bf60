"""Which weights have adapters, and which are neither adapted nor trained, to read before step 1."""

from collections import Counter
from collections.abc import Iterable

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from nestling.backends.sizes import full_shape
from nestling.models.adapter_merging import bare_name, without_adapters


def adapter_lines(backbone: nn.Module) -> dict[str, object]:
    """Lines for a summary: names of layers with adapters and how many, and what is left as it is; none for full tuning.

    Token embeddings, the output layer and vectors, such as norms and biases, are not listed.
    """
    if not isinstance(backbone, PeftModel):
        return {}
    model = without_adapters(backbone)
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, BaseTunerLayer)]
    adapted = [f"{bare_name(name)}.{getattr(each, 'parameter_name', 'weight')}" for name, each in layers]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    listed = {*adapted, *(f"{name}.weight" for name, each in model.named_modules() if each in ends)}
    left = [
        bare_name(name)
        for name, each in model.named_parameters()
        if ".lora_" not in name and len(full_shape(each)) > 1 and bare_name(name) not in listed
    ]
    lines: dict[str, object] = {"adapters": counted(adapted)}
    return {**lines, "not adapted": counted(left)} if left else lines


def counted(names: Iterable[str]) -> str:
    """Such as "28 q_proj, 28 k_proj, 28 experts.down_proj"."""
    short = Counter(".".join(name.removesuffix(".weight").split(".")[-2:]) for name in names)
    return ", ".join(f"{count} {name}" for name, count in short.items())
