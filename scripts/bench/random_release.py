"""A directory in the form of Qwen3-Embedding's or Qwen3-Reranker's release, of any size, with random weights.

The tokenizer is byte-level BPE with as many tokens as the released one, whose first merges join any two bytes and whose
others add a third one to two small letters; special tokens, ids and the template are those of the release.
"""

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

Kind = Literal["embedder", "reranker"]

# Tokens of the released vocabulary before the special ones.
WORDS = 151_643
# The special tokens in the order of their ids.
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
]
END = SPECIAL[0]
SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FIRST = [("y", "e"), ("ye", "s"), ("n", "o")]  # so that each answer of a reranker is one token
QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3; those of the 0.6B models by default."""

    hidden_size: int = 1024
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 3072
    max_position_embeddings: int = 32_768


def write_release(folder: Path, kind: Kind, shape: Shape, *, seed: int, shard: str) -> None:
    """Write a directory: weights in bfloat16 in files of at most `shard` (such as 500MB), tokenizer and settings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    folder.mkdir(parents=True)
    tokenizer = byte_pairs(appends_end=kind == "embedder")
    write_tokenizer(tokenizer, folder)
    end = tokenizer.token_to_id(END)
    config = Qwen3Config(
        **asdict(shape),
        vocab_size=tokenizer.get_vocab_size(),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=end,
        eos_token_id=end,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = (Qwen3Model if kind == "embedder" else Qwen3ForCausalLM)(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # larger than by default, under which random models give all texts one embedding
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.bfloat16().save_pretrained(folder, max_shard_size=shard)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**settings, "architectures": ["Qwen3ForCausalLM"]})
    if kind == "embedder":
        write_sentence_transformers(folder, shape.hidden_size)


def byte_pairs(*, appends_end: bool) -> "Tokenizer":
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda each: (not each.islower(), each))
    merges = list(dict.fromkeys([*FIRST, *product(alphabet, alphabet)]))
    pairs = ["".join(each) for each in product("abcdefghijklmnopqrstuvwxyz", repeat=2)]
    more = WORDS - len(alphabet) - len(merges)
    merges += [(pair, letter) for letter, pair in product(alphabet, pairs) if (pair, letter) not in FIRST][:more]
    words = [*alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=text.startswith("<|"), normalized=False) for text in SPECIAL])
    plain = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    template = processors.TemplateProcessing(
        single=f"$A {END}:0", pair=f"$A {END}:0 $B:1 {END}:1", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    tokenizer.post_processor = processors.Sequence([plain, template]) if appends_end else plain
    return tokenizer


def write_tokenizer(tokenizer: "Tokenizer", folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "pad_token": END,
        "padding_side": "left",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)


def write_sentence_transformers(folder: Path, dim: int) -> None:
    names = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(names)
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": dim, "pooling_mode_lasttoken": True, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    prompts = {"prompts": {"query": QUERY_PROMPT, "document": ""}, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", prompts)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
