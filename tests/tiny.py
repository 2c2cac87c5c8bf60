"""Tiny random models on disk, built in well under a second without any network.

They have the layout, special tokens and post-processors of the models they stand for, so that a test runs the exact
code path of the real one. Every builder takes an empty or missing folder, is seeded, and returns the folder.
"""

import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    Qwen3Config,
    Qwen3Model,
)

DEFAULT_QUERY_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"  # Qwen3-Embedding's
)

SENTENCES = (
    "Given a web search query, retrieve relevant passages that answer the query",
    "Instruct: Given a bash command description, retrieve the command\nQuery: list all files by size",
    "How do I find every file that was modified during the last seven days?",
    "find . -name '*.py' -mtime -7 -print0 | xargs -0 grep -l 'import torch'",
    "def read_lines(path):\n    with open(path, encoding='utf-8') as stream:\n        return stream.readlines()",
    "The boundary layer over a flat plate becomes turbulent at a high Reynolds number.",
    "My card has not arrived yet, can you tell me when it is delivered?",
    "人工智慧是研究如何使電腦模擬人類智慧的科學。",
    "向量检索把查询和文档映射到同一个空间，然后比较它们的相似度。",
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
    'Note that the answer can only be "yes" or "no".',
    "system user assistant yes no",
)

# The added tokens of Qwen3 in the order of their ids (151643 and on), and whether each is special.
QWEN3_TOKENS: Mapping[str, bool] = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}
QWEN3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_qwen3(
    folder: Path,
    *,
    sentence_transformers: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int = 2,
) -> Path:
    """Qwen3 of few layers, hidden size 64, 4 query and 2 key-value heads of 16.

    Args:
        folder: Where to write it.
        sentence_transformers: True for Qwen3-Embedding's layout: the sentence-transformers files, weights without the
            `model.` prefix, and a tokenizer that appends `<|endoftext|>`. False for that of a Qwen3 base model: a bare
            causal language model, weights with the prefix, and a tokenizer that appends nothing.
        dtype: Of the weights on disk.
        seed: Of the random weights.
        layers: Number of layers.
    """
    tokenizer = qwen3_tokenizer(appends_eos=sentence_transformers)
    config = _qwen3_config(tokenizer, dtype, layers)
    write_json(folder / "config.json", config)
    write_qwen3_tokenizer(folder, tokenizer)
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen3Model(Qwen3Config(**config))
    _randomise(model)
    torch.random.set_rng_state(torch_state)
    prefix = "" if sentence_transformers else "model."
    _write_weights(folder, model, dtype, prefix)
    if sentence_transformers:
        prompts = {"query": DEFAULT_QUERY_PROMPT, "document": ""}
        write_sentence_transformers(folder, model.config.hidden_size, "lasttoken", prompts)
    return folder


def tiny_bert(
    folder: Path,
    pooling: Literal["mean", "cls"] = "mean",
    *,
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    seed: int = 0,
) -> Path:
    """BERT of 2 layers, hidden size 48 and 4 heads, in the layout of all-MiniLM and BGE; dropout 0.1.

    Args:
        folder: Where to write it.
        pooling: What `1_Pooling/config.json` says.
        prompts: For `config_sentence_transformers.json`, E5's `{"query": "query: ", "document": "passage: "}` say;
            None leaves the key away, as all-MiniLM does.
        normalize: Whether `modules.json` ends in a Normalize module.
        seed: Of the random weights.
    """
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
    )
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = BertModel(config)
    _randomise(model)
    torch.random.set_rng_state(torch_state)
    write_json(folder / "config.json", {**config.to_diff_dict(), "architectures": ["BertModel"]})
    write_bert_tokenizer(folder, tokenizer)
    _write_weights(folder, model, torch.float32, "")
    write_sentence_transformers(folder, config.hidden_size, f"{pooling}_token{'s' * (pooling == 'mean')}", prompts)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    if not normalize:
        write_json(folder / "modules.json", list(_modules())[:2])
    return folder


def tiny_cross_encoder(folder: Path, model_type: str = "bert", *, seed: int = 0, **settings: Any) -> Path:
    """A classifier of one label of 2 layers, hidden size 48 and 4 heads, with BERT's tokenizer, as rerankers are.

    Args:
        folder: Where to write it.
        model_type: Of its configuration.
        seed: Of the random weights.
        settings: More of the configuration.
    """
    tokenizer = bert_tokenizer()
    known = AutoConfig.for_model(model_type)
    wanted = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 130}
    sizes = {known.attribute_map.get(name, name): size for name, size in wanted.items()}
    inner = "hidden_dim" if hasattr(known, "hidden_dim") else "intermediate_size"
    tokens = {name: tokenizer.token_to_id("[PAD]") for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    tokens |= {name: None for name in ("cls_token_id", "sep_token_id") if hasattr(known, name)}
    rows = {"vocab_size": tokenizer.get_vocab_size(), inner: 96, "num_labels": 1}
    config = type(known)(**{**sizes, **tokens, **rows, **settings})
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    _randomise(model)
    torch.random.set_rng_state(torch_state)
    model.save_pretrained(folder)
    write_bert_tokenizer(folder, tokenizer)
    if model_type not in ("bert", "electra", "albert"):  # their tokenizers alone give token types
        path = folder / "tokenizer_config.json"
        own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
        write_json(path, json.loads(path.read_text()) | own)
    return folder


def qwen3_tokenizer(*, appends_eos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text, special in QWEN3_TOKENS.items()]
    )
    byte_level = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    eos = "<|endoftext|>"
    template = processors.TemplateProcessing(
        single=f"$A {eos}:0", pair=f"$A {eos}:0 $B:1 {eos}:1", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    tokenizer.post_processor = processors.Sequence([byte_level, template]) if appends_eos else byte_level
    return tokenizer


def _qwen3_config(tokenizer: Tokenizer, dtype: torch.dtype, layers: int) -> dict[str, Any]:
    """config.json as transformers 4.51 wrote it for the released checkpoints."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.51.3",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def write_qwen3_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
        for text, special in QWEN3_TOKENS.items()
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [text for text, special in QWEN3_TOKENS.items() if special][1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)


def bert_tokenizer() -> Tokenizer:
    """Words, letters, and letters within a word; what a WordPieceTrainer takes differs from process to process."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in SENTENCES for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = {letter for word in words for letter in word} | set(string.ascii_lowercase + string.digits)
    entries = sorted(words | letters) + [f"##{letter}" for letter in sorted(letters)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {entry: index for index, entry in enumerate(special + entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def write_bert_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.txt
    config = {
        "do_lower_case": True,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 128,
    }
    write_json(folder / "tokenizer_config.json", config)


def _randomise(model: torch.nn.Module) -> None:
    """Weights larger than transformers' 0.02, so that texts get clearly different embeddings after two layers."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def _write_weights(folder: Path, model: torch.nn.Module, dtype: torch.dtype, prefix: str) -> None:
    state = {prefix + name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def write_sentence_transformers(folder: Path, dim: int, pooling: str, prompts: Mapping[str, str] | None) -> None:
    modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    flags = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    write_json(folder / "modules.json", list(_modules()))
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, **flags, "include_prompt": True})
    extra = {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(
        folder / "config_sentence_transformers.json",
        {**({} if prompts is None else {"prompts": dict(prompts)}), **extra},
    )


def _modules() -> Iterator[dict[str, object]]:
    for idx, (path, name) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))):
        yield {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{name}"}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
