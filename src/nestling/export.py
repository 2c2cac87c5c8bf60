"""Directories that transformers (4 and 5), sentence-transformers, vLLM and TEI load.

The formats and the traps behind each line here: docs/serving.md.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor

from nestling.embedder import Embedder, Kind, read_model_files
from nestling.files import sync
from nestling.merged_weights import MergedWeights, computing_with, without_adapters
from nestling.model_card import Card, Facts, base_license, base_name, render_card
from nestling.parity import MERGED_COSINE, ROUNDED_COSINE, Expectation, GateReport, probe_texts, verify_export
from nestling.weights import StoredWeights, model_file, write_weights

# Longer probes cost minutes on a large model on the CPU, and say nothing new about truncation.
PROBE_LENGTH = 256

# Files of slow tokenizers and templates, which some stacks still read; transformers 5 does not save them.
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "sqrt": "pooling_mode_mean_sqrt_len_tokens",
    "weighted": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}


def export_embedder(
    embedder: Embedder,
    output_dir: Path,
    *,
    query_max_length: int,
    document_max_length: int,
    dims: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    instructions: Mapping[str, str] | None = None,
    card: Card | None = None,
) -> GateReport:
    """Write a serving directory, LoRA merged, after it has passed the parity gate.

    It is written beside `output_dir`, checked, forced onto the disk and renamed: `output_dir` exists whole or not at
    all. The live model is not changed. In a distributed run, call it on one rank.

    Args:
        embedder: The trained model; its default prompts become the directory's "query" and "document".
        output_dir: Must not exist.
        query_max_length: Tokens of a query in training, prompt included.
        document_max_length: Tokens of a document in training; the longer of the two becomes max_seq_length.
        dims: Matryoshka dimensions that were trained; the full one is added.
        dtype: Of the written weights; the base's own by default.
        instructions: More query prompts: a name (of a dataset, say) and its instruction.
        card: What the run knows, for README.md.

    Raises:
        ValueError: `output_dir` exists, the disk is full, or the adapters cannot be merged.
        ExportError: The written directory does not reproduce the model; it has been removed.
    """
    refuse_existing(output_dir)
    weights = MergedWeights(embedder.backbone)
    config = serving_config(embedder, dims, dtype)
    dtype = getattr(torch, config["dtype"])
    require_space(output_dir.parent, weights.nbytes(dtype))
    max_length = min(max(query_max_length, document_max_length), embedder.max_positions)
    prompts = serving_prompts(embedder, instructions or {})
    expectation = expect(embedder, weights, dtype, max_length)
    card = card or Card()
    facts = describe(embedder, card, dims, prompts, query_max_length, document_max_length)
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        partial.mkdir()
        write_json(partial / "config.json", config)
        write_weights(weights, partial, dtype=dtype, prefix=written_prefix(embedder))
        write_tokenizer(embedder, partial)
        write_sentence_transformers(embedder, partial, max_length, prompts)
        write_adapter(embedder, partial)
        report = verify_export(partial, expectation)
        (partial / "README.md").write_text(render_card(facts, card, report), encoding="utf-8")
        publish(partial, output_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return report


def describe(
    embedder: Embedder,
    card: Card,
    dims: Sequence[int],
    prompts: Mapping[str, str],
    query_max_length: int,
    document_max_length: int,
) -> Facts:
    """What the model card says about the directory."""
    base = card.base or base_name(embedder.source)
    return Facts(
        title=card.title or f"{base}, fine-tuned",
        base=base,
        license=base_license(embedder.source),
        pooling=embedder.pooling,
        dim=embedder.dim,
        dims=sorted({*dims, embedder.dim}, reverse=True) if dims else (),
        query_max_length=query_max_length,
        document_max_length=document_max_length,
        prompts=prompts,
        lora=isinstance(embedder.backbone, PeftModel),
    )


def refuse_existing(output_dir: Path) -> None:
    """Raise ValueError if `output_dir` exists, or its parent does not."""
    if output_dir.exists():
        raise ValueError(f"{output_dir} exists already; name a new folder, or remove it first")
    if not output_dir.parent.is_dir():
        raise ValueError(f"{output_dir.parent} is not a folder; create it first")


def require_space(folder: Path, needed: int) -> None:
    """Raise ValueError unless the disk has room for the weights and a little more."""
    free = shutil.disk_usage(folder).free
    if free < 1.02 * needed + 64e6:
        raise ValueError(
            f"{folder}: {free / 1e9:.2f} GB free, and the export needs {needed / 1e9:.2f} GB and a little more"
        )


def publish(folder: Path, output_dir: Path) -> None:
    """Force every file of `folder` onto the disk and rename it to `output_dir`, which must not exist."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)
    refuse_existing(output_dir)
    folder.rename(output_dir)
    sync(output_dir.parent)


def expect(embedder: Embedder, weights: MergedWeights, dtype: torch.dtype, max_length: int) -> Expectation:
    """The probes' embeddings: as trained, and in float32 on the merged weights rounded to `dtype`."""
    length = min(max_length, PROBE_LENGTH)
    trainer = encode_probes(embedder, length)
    precision = embedder.precision
    try:
        embedder.precision = torch.float32
        with computing_with(embedder.backbone, weights, dtype):
            merged = encode_probes(embedder, length)
    finally:
        embedder.precision = precision
    exact = precision == torch.float32 and not _loses_digits(embedder, dtype)
    base = without_adapters(embedder.backbone)
    return Expectation(
        pooling=embedder.pooling,
        query_prompt=embedder.prefix("query"),
        document_prompt=embedder.prefix("document"),
        max_length=max_length,
        probe_length=length,
        end_token=embedder.text_tokenizer.end_id,
        merged=merged,
        trainer=trainer,
        trainer_cosine=MERGED_COSINE if exact else ROUNDED_COSINE,
        base=embedder.source,
        base_subfolder=read_model_files(embedder.source).subfolder,
        prefix=f"{base.base_model_prefix}.",
    )


def encode_probes(embedder: Embedder, max_length: int) -> Tensor:
    """[2 n, D] float32: the probes as queries, then as documents."""
    kinds: tuple[Kind, Kind] = ("query", "document")
    texts = probe_texts(max_length)
    return torch.cat([embedder.encode(texts, kind=kind, max_length=max_length) for kind in kinds])


def _loses_digits(embedder: Embedder, dtype: torch.dtype) -> bool:
    held = next(parameter.dtype for parameter in embedder.parameters() if parameter.is_floating_point())
    return dtype != torch.float32 or held != torch.float32


def serving_config(embedder: Embedder, dims: Sequence[int], dtype: torch.dtype | None) -> dict[str, Any]:
    """config.json: the base's own file, with the keys that either major version of transformers and vLLM read."""
    config: dict[str, Any] = read_base_json(embedder, "config.json") or {}
    if not config:
        raise ValueError(f"{embedder.source}: no config.json")
    model = without_adapters(embedder.backbone)
    if not is_causal(config):  # vLLM turns causal models into embedders; heads of other kinds are not written
        config["architectures"] = [type(model).__name__]
    name = str(dtype).removeprefix("torch.") if dtype else config.get("dtype") or config.get("torch_dtype") or "float32"
    config |= {"dtype": name, "torch_dtype": name}
    config |= rope_keys(model.config.to_dict().get("rope_parameters"))
    if dims:
        config |= {"is_matryoshka": True, "matryoshka_dimensions": sorted({*dims, embedder.dim}, reverse=True)}
    return config


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names a causal language model."""
    return any(name.endswith("ForCausalLM") for name in config.get("architectures") or [])


def rope_keys(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """rope_parameters for transformers 5, rope_theta and rope_scaling for 4, which takes 10000 for a theta it misses.

    Models with one setting a layer type keep the keys of their own file.
    """
    if not parameters or "rope_theta" not in parameters:
        return {}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    scaled = scaling.get("rope_type", "default") != "default"
    return {
        "rope_parameters": dict(parameters),
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": scaling if scaled else None,
    }


def written_prefix(embedder: Embedder) -> str:
    """ "model." or "" before weight names: as the base has it, where its architecture is kept."""
    prefix = f"{without_adapters(embedder.backbone).base_model_prefix}."
    if not is_causal(read_base_json(embedder, "config.json") or {}):
        return ""
    names = StoredWeights(embedder.source, read_model_files(embedder.source).subfolder)
    return prefix if any(name.startswith(prefix) for name in names) else ""


def write_tokenizer(embedder: Embedder, folder: Path) -> None:
    """The base's tokenizer files, byte for byte, but for what would break a reader or drop the end token."""
    original = base_file(embedder, "tokenizer.json")
    if original is None or embedder.text_tokenizer.appended_end is not None:
        backend = Tokenizer.from_str(embedder.text_tokenizer.backend.to_str())
        backend.no_truncation()
        backend.save(str(folder / "tokenizer.json"))
    else:
        shutil.copyfile(original, folder / "tokenizer.json")
    for name in TOKENIZER_FILES:
        path = base_file(embedder, name)
        if path is not None:
            shutil.copyfile(path, folder / name)
    write_json(folder / "tokenizer_config.json", tokenizer_config(embedder))


def tokenizer_config(embedder: Embedder) -> dict[str, Any]:
    """tokenizer_config.json of the base, readable by transformers 4 and unable to drop the end token in 5."""
    config: dict[str, Any] = read_base_json(embedder, "tokenizer_config.json") or {}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 5 writes the list under this name, 4 crashes on it
        del config["extra_special_tokens"]
        config["additional_special_tokens"] = extra
    if str(config.get("tokenizer_class", "")).startswith("Qwen2"):
        # Some releases rebuild the post-processor from these, without the end token; Qwen2's has no use for them.
        config.pop("add_bos_token", None)
        config.pop("add_eos_token", None)
    if embedder.tokenizer.pad_token is None:
        config["pad_token"] = embedder.text_tokenizer.appended_end or embedder.tokenizer.eos_token
    return config


def write_sentence_transformers(embedder: Embedder, folder: Path, max_length: int, prompts: Mapping[str, str]) -> None:
    """The older schema: sentence-transformers 6 reads it alike, TEI and older vLLM read no other."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules[: 3 if embedder.normalize else 2])
        ],
    )
    flags = {flag: name == embedder.pooling for name, flag in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": embedder.dim, **flags, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    settings = {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
    lower = bool((read_base_json(embedder, "sentence_bert_config.json") or {}).get("do_lower_case", False))
    # vLLM ignores the file unless it holds both keys
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lower})


def serving_prompts(embedder: Embedder, instructions: Mapping[str, str]) -> dict[str, str]:
    """Prompts by name: the trained ones, those of further instructions, and others that the base has."""
    trained = {"query": embedder.prefix("query"), "document": embedder.prefix("document")}
    more = {name: embedder.prefix("query", text) for name, text in instructions.items() if name not in trained}
    own: dict[str, str] = (read_base_json(embedder, "config_sentence_transformers.json", root=True) or {}).get(
        "prompts"
    ) or {}
    return trained | more | {name: text for name, text in own.items() if name not in trained | more}


def write_adapter(embedder: Embedder, folder: Path) -> None:
    """The LoRA adapter in adapter/, loadable by peft onto the base."""
    if isinstance(embedder.backbone, PeftModel):
        # "auto" would ask the hub whether the vocabulary has grown
        embedder.backbone.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)


def base_file(embedder: Embedder, name: str, *, root: bool = False) -> Path | None:
    """A file of the base model beside its transformer, or at its root; None where it has none."""
    subfolder = "" if root else read_model_files(embedder.source).subfolder
    return model_file(embedder.source, name, subfolder)


def read_base_json(embedder: Embedder, name: str, *, root: bool = False) -> Any:
    """A JSON file of the base model; None where it has none."""
    path = base_file(embedder, name, root=root)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write JSON as the hub's libraries do."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
