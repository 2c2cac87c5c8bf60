"""A small Qwen3 to try training with where no model can be downloaded: random layers over MiniLM's words.

python scripts/bench/small_qwen3.py --minilm $(python data/minilm.py) --output runs/small-qwen3

The tokenizer is all-MiniLM-L6-v2's. Each token's vector is what MiniLM makes of that token alone, in its principal
components; nothing else is known to the model. As a reranker its prompt is the word match, the query and the document
before [SEP]; as an embedder it has to learn first, from MiniLM say (docs/results.md, "A decoder").
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nestling.config import parse_config, require, require_new, run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BLOCK = 512  # tokens that MiniLM reads at a time
SAMPLE = 8000  # of them the principal components are taken
SCALE = 0.1  # root mean square of a vector: large enough to be told apart, small enough for layers to be heard


@dataclass(frozen=True)
class SmallConfig:
    """Settings of scripts/bench/small_qwen3.py.

    Args:
        output: Directory of the model; must not exist.
        minilm: Directory of all-MiniLM-L6-v2.
        hidden: Hidden size; heads have 32 dimensions.
        layers: Layers.
        seed: Of the random weights.
        kind: Whether it gets the settings of a reranker.
    """

    output: str
    minilm: str
    hidden: int = 256
    layers: int = 2
    seed: int = 1
    kind: Literal["reranker", "embedder"] = "reranker"

    def __post_init__(self) -> None:
        require(0 < self.hidden <= 384 and self.hidden % 32 == 0, "hidden has to be a multiple of 32 up to 384")
        require(self.layers > 0, "layers has to be above 0")


def main() -> None:
    config = parse_config(SmallConfig, __doc__)
    require_new("--output", config.output)

    import torch
    from transformers import AutoModel, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from nestling.models.reranker_settings import SETTINGS, RerankerSettings

    tokenizer = AutoTokenizer.from_pretrained(config.minilm)
    torch.manual_seed(config.seed)
    heads = config.hidden // 32
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=2 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
    )
    words = token_vectors(
        AutoModel.from_pretrained(config.minilm).eval(), tokenizer.cls_token_id, tokenizer.sep_token_id
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(principal(words, config.hidden))
    model.save_pretrained(config.output)
    tokenizer.save_pretrained(config.output)
    if config.kind == "reranker":
        # Qwen3's own prompt would be 92 tokens to this tokenizer.
        settings = RerankerSettings("", "[SEP]", "match", query_max_length=40, document_max_length=64)
        Path(config.output, SETTINGS).write_text(settings.to_json(), encoding="utf-8")
    print(f"{config.output}: {sum(each.numel() for each in model.parameters()):,} parameters")


def token_vectors(minilm: "PreTrainedModel", start: int, end: int) -> "Tensor":
    """[V, 384]: the mean state of each token between the two that begin and end a text."""
    import torch

    count = minilm.config.vocab_size
    blocks = [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    with torch.no_grad():
        found = [
            minilm(torch.tensor([[start, token, end] for token in block])).last_hidden_state.mean(dim=1)
            for block in blocks
        ]
    return torch.cat(found)


def principal(vectors: "Tensor", width: int) -> "Tensor":
    """[V, width]: the first principal components of [V, D], every row scaled alike."""
    import torch

    centred = vectors - vectors.mean(dim=0)
    sample = centred[torch.randperm(len(centred))[:SAMPLE]]
    directions = torch.linalg.svd(sample, full_matrices=False).Vh[:width]
    found = centred @ directions.T
    scaled: Tensor = SCALE * found / found.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
    return scaled


if __name__ == "__main__":
    run(main)
