"""The first layers of a model, run on a few tokens as they are run in training and as transformers' users run them.

Every kind of layer that the model has is among them; a model of many layers takes hardly longer than one of few.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nestling.batches.packing import AnyChunk
from nestling.models.adapter_merging import without_adapters
from nestling.models.attention import VARLEN, attentions
from nestling.models.compiled_layers import transformer_layers
from nestling.models.token_model import TokenModel, is_decoder

LEAST_LAYERS = 2
# What models call the number of a layer, which tells no kinds apart.
NUMBERS = ("layer_idx", "layer_id", "layer_number")
# Windows of attention are as short as this meanwhile, so that a few tokens are longer.
WINDOW = 3
WINDOWS = ("sliding_window", "attention_chunk_size")


class FirstLayers:
    """The first layers of a model, at least `LEAST_LAYERS`, until every kind of layer has been there.

    Args:
        model: The model; `states` are of its transformer.
    """

    def __init__(self, model: TokenModel) -> None:
        self.model = model
        layers = transformer_layers(without_adapters(model.backbone))
        types = getattr(model.config, "layer_types", None) or [None] * len(layers)
        kinds = [(kind_of(layer), str(each)) for layer, each in zip(layers, types, strict=False)]
        firsts = [kinds.index(each) for each in set(kinds)]
        self.last = layers[min(max(LEAST_LAYERS - 1, *firsts), len(layers) - 1)]

    def states(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """[B, L, D] states of texts of one length, as transformers' users run them."""
        tokens = torch.tensor(ids, device=self.model.device)
        settings = {"use_cache": False} if is_decoder(self.model.config) else {}
        mask = torch.ones_like(tokens)

        def run() -> Tensor:
            hidden: Tensor = self.model.transformer(input_ids=tokens, attention_mask=mask, **settings).last_hidden_state
            return hidden

        return self._until_last(run, tokens.shape)

    def chunk_states(self, chunk: AnyChunk) -> Tensor:
        """[B, L, D] or [1, T, D] states of a chunk, as the model runs it."""
        return self._until_last(lambda: self.model.hidden_states(chunk), chunk.input_ids.shape)

    def _until_last(self, run: Callable[[], Tensor], shape: torch.Size) -> Tensor:
        """The output of the last layer, or that of the model if layers of its kind have outputs of another shape."""

        def stop(module: nn.Module, inputs: object, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            if isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == shape:
                raise Reached(states)

        handle = self.last.register_forward_hook(stop)
        try:
            return run()
        except Reached as reached:
            return reached.states
        finally:
            handle.remove()


class Reached(Exception):  # noqa: N818 - nothing is wrong
    """Ends a forward pass at a layer.

    Args:
        states: The layer's output.
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def kind_of(layer: nn.Module) -> tuple[object, ...]:
    """Equal for layers of one kind: the classes of their modules, and settings of these that are no real numbers."""
    return tuple((type(module).__name__, *settings_of(module)) for module in layer.modules())


def settings_of(module: nn.Module) -> list[tuple[str, object]]:
    values = vars(module).items()
    return [(name, value) for name, value in values if type(value) in (bool, int, str) and name not in NUMBERS]


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A context in which every module is in evaluation mode; a loaded model is, inside of one that is not."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a model has transformers' attention for padded texts on any device, if it has another."""
    attention = model.config._attn_implementation
    if attention not in (VARLEN, "flash_attention_2"):
        yield
        return
    model.set_attn_implementation("sdpa" if "sdpa" in attentions(type(model)) else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@contextmanager
def short_windows(model: PreTrainedModel) -> Iterator[None]:
    """A context in which attention that reaches back for so many tokens reaches back for `WINDOW`.

    Some modules count one more than the config does (ModernBERT), and still do here.
    """
    found = [
        (each, name, getattr(each, name))
        for each in (model.config, *model.modules())
        for name in WINDOWS
        if type(getattr(each, name, None)) is int and getattr(each, name) > WINDOW
    ]
    for each, name, length in found:
        setattr(each, name, WINDOW + any(length == other + 1 for _, _, other in found))
    try:
        yield
    finally:
        for each, name, length in found:
            setattr(each, name, length)


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the modules that run have their weights in float32, if those are of a shorter type.

    The token embeddings, of which a few rows are read, keep theirs; their output is cast.
    """
    table: Any = model.get_input_embeddings()
    originals: list[tuple[nn.Parameter, Tensor]] = []

    def widen(module: nn.Module, inputs: object) -> None:
        for parameter in module.parameters(recurse=module in layers):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                originals.append((parameter, parameter.data))
                parameter.data = parameter.data.float()

    layers = set(transformer_layers(model))  # whole: some read the weights of modules that they do not run
    handles = [each.register_forward_pre_hook(widen) for each in model.modules() if each is not table]
    handles.append(table.register_forward_hook(lambda module, inputs, output: widened(output)))
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in originals:
            parameter.data = data


def widened(output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16) else output
