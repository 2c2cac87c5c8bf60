"""Directories that transformers (4 and 5), sentence-transformers, vLLM and TEI load.

The formats and the traps behind each line here: docs/serving.md.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer

from nestling.console import say, working
from nestling.export.card import Card, base_license, base_name
from nestling.export.embedder_card import EmbedderFacts, render_embedder_card
from nestling.export.embedder_expectation import base_files, expect_embeddings
from nestling.export.embedder_gate import EmbedderReport, check_embedder
from nestling.export.gate import require_passed
from nestling.export.head_files import pooling_file, write_head
from nestling.export.serving_files import (
    copy_code,
    copy_tokenizer_files,
    is_qwen2,
    model_config,
    new_directory,
    padding_token,
    refuse_existing,
    require_space,
    tokenizer_config,
    write_adapter,
    write_json,
    written_dtype,
)
from nestling.heap import return_large_blocks
from nestling.models.adapter_merging import without_adapters
from nestling.models.auto_classes import text_model_class
from nestling.models.embedder import Embedder, read_model_files
from nestling.models.merged_weights import MergedWeights
from nestling.models.model_prompts import DOCUMENT_NAMES, read_named_prompts
from nestling.models.model_tokenizer import lower_cases
from nestling.models.remote_code import code_files, is_trusted
from nestling.models.weights import StoredWeights, write_weights


def export_embedder(
    embedder: Embedder,
    output_dir: Path,
    *,
    max_seq_length: int | None = None,
    trained_lengths: tuple[int, int] | None = None,
    dims: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    instructions: Mapping[str, str] | None = None,
    card: Card | None = None,
    trained: bool = True,
    allow_failed_gate: bool = False,
) -> EmbedderReport:
    """Write a serving directory, LoRA merged, after it has passed the parity gate.

    It is written beside `output_dir`, checked, forced onto the disk and renamed: `output_dir` exists whole or not at
    all. The live model is not changed. In a distributed run, call it on one rank.

    Args:
        embedder: The trained model; its default prompts become the directory's "query" and "document".
        output_dir: Must not exist.
        max_seq_length: Tokens at which the directory cuts texts, prompt included; by default the base's own.
        trained_lengths: Tokens at which training cut queries and documents, for the card; None if not known.
        dims: Matryoshka dimensions that were trained; the full one is added, and alone is none.
        dtype: Of the written weights; the base's own by default.
        instructions: More query prompts: a name (of a dataset, say) and its instruction.
        card: What the run knows, for README.md.
        trained: Whether the weights have to differ from the base's.
        allow_failed_gate: Write a directory that fails the gate too; its card says so.

    Raises:
        ValueError: `output_dir` exists, or the adapters cannot be merged.
        WriteError: There is no room for it, or it could not be written.
        ExportError: The written directory does not reproduce the model; it has been removed.
    """
    refuse_existing(output_dir)
    return_large_blocks()
    dims = sorted({*dims, embedder.dim}, reverse=True) if {*dims} - {embedder.dim} else []
    weights = MergedWeights(embedder.backbone)
    config = serving_config(embedder, dims, dtype)
    dtype = written_dtype(base_files(embedder), dtype)
    require_space(output_dir.parent, weights.nbytes(dtype) + sum(each.nbytes for each in embedder.head.parameters()))
    max_length = min(max_seq_length or embedder.max_seq_length, embedder.max_positions)
    prompts = serving_prompts(embedder, instructions or {})
    say(f"exporting to {output_dir}: the model's own embeddings, to compare with")
    expectation = expect_embeddings(embedder, weights, dtype, max_length, trained)
    written = expectation.outputs.weights
    card = card or Card()
    facts = describe(embedder, card, dims, prompts, max_length, trained_lengths)
    say(facts.lengths)
    with new_directory(output_dir) as folder:
        write_json(folder / "config.json", config)
        copy_code(base_files(embedder), folder)
        with working("writing the weights"):
            write_weights(written, folder, specs=written.specs(), prefix=written_prefix(embedder))
        write_tokenizer(embedder, folder)
        write_sentence_transformers(embedder, folder, max_length, prompts)
        write_adapter(embedder.backbone, folder)
        if (folder / "adapter").is_dir():
            write_head(embedder.head, folder / "adapter")
        report = check_embedder(folder, expectation)
        require_passed(report, output_dir, allow_failed=allow_failed_gate)
        (folder / "README.md").write_text(render_embedder_card(facts, card, report), encoding="utf-8")
    return report


def describe(
    embedder: Embedder,
    card: Card,
    dims: Sequence[int],
    prompts: Mapping[str, str],
    max_seq_length: int,
    trained_lengths: tuple[int, int] | None,
) -> EmbedderFacts:
    """What the model card says about the directory."""
    base = card.base or base_name(embedder.source)
    return EmbedderFacts(
        title=card.title or f"{base}, fine-tuned",
        base=base,
        license=base_license(embedder.source),
        pooling=embedder.pooling,
        dim=embedder.dim,
        dims=dims,
        max_seq_length=max_seq_length,
        trained_lengths=trained_lengths,
        prompts=prompts,
        lora=isinstance(embedder.backbone, PeftModel),
        head=[each.kind for each in embedder.head.settings],
        pool_prompt=embedder.text_tokenizer.pool_prompt,
        model_type=str(embedder.config.model_type),
        model_class=text_model_class(embedder.config).__name__,
        own_code=is_trusted(embedder.source) and bool(code_files(embedder.source)),
    )


def serving_config(embedder: Embedder, dims: Sequence[int], dtype: torch.dtype | None) -> dict[str, Any]:
    """config.json: the base's own file, with the keys that either major version of transformers and vLLM read."""
    model = without_adapters(embedder.backbone)
    config = model_config(base_files(embedder), model.config, dtype)
    if not is_causal(config):  # vLLM turns causal models into embedders; heads of other kinds are not written
        config["architectures"] = [type(model).__name__]
    if dims:
        config |= {"is_matryoshka": True, "matryoshka_dimensions": list(dims)}
    return config


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names a causal language model."""
    return any(name.endswith("ForCausalLM") for name in config.get("architectures") or [])


def written_prefix(embedder: Embedder) -> str:
    """ "model." or "" before weight names: as the base has it, where its architecture is kept."""
    prefix = f"{without_adapters(embedder.backbone).base_model_prefix}."
    if not is_causal(base_files(embedder).json("config.json")):
        return ""
    names = StoredWeights(embedder.source, read_model_files(embedder.source).subfolder)
    return prefix if any(name.startswith(prefix) for name in names) else ""


def write_tokenizer(embedder: Embedder, folder: Path) -> None:
    """The base's tokenizer files, byte for byte, but for what would break a reader or drop the end token.

    Where sentence-transformers turns texts to lower case, the file does that itself, for servers that would not.
    """
    base, appended = base_files(embedder), embedder.text_tokenizer.appended_end
    original = base.own_path("tokenizer.json")
    lower = lower_cases(base.source, base.subfolder)
    if original is None or appended is not None or lower:
        backend = Tokenizer.from_str(embedder.text_tokenizer.backend.to_str())
        backend.no_truncation()
        backend.save(str(folder / "tokenizer.json"))
    else:
        shutil.copyfile(original, folder / "tokenizer.json")
    copy_tokenizer_files(base, folder)
    config = tokenizer_config(base)
    if lower:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # others put normalisers of their own in the place of it
    if appended is not None and not is_qwen2(config):
        config |= end_settings(embedder)
    if embedder.tokenizer.pad_token is None:
        config["pad_token"] = padding_token(embedder.tokenizer, embedder.source, appended)
    write_json(folder / "tokenizer_config.json", config)


def end_settings(embedder: Embedder) -> dict[str, bool]:
    """What transformers 4 reads for BOS and EOS around a text, in place of tokenizer.json."""
    tokenizer, texts = embedder.tokenizer, embedder.text_tokenizer
    begins = texts.backend.encode("a").ids[0] == tokenizer.bos_token_id
    return {"add_bos_token": begins, "add_eos_token": texts.appended_end == tokenizer.eos_token}


def write_sentence_transformers(embedder: Embedder, folder: Path, max_length: int, prompts: Mapping[str, str]) -> None:
    """The older schema: sentence-transformers 6 reads it alike, TEI and older vLLM read no other."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *write_head(embedder.head, folder)]
    if embedder.normalize:
        kinds.append(("Normalize", f"{len(kinds)}_Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ],
    )
    pool_prompt, width = embedder.text_tokenizer.pool_prompt, int(embedder.config.hidden_size)
    pooling = pooling_file(embedder.pooling, width, pool_prompt=pool_prompt)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    settings = {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
    lower = lower_cases(embedder.source, base_files(embedder).subfolder)
    # vLLM ignores the file unless it holds both keys
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lower})


def serving_prompts(embedder: Embedder, instructions: Mapping[str, str]) -> dict[str, str]:
    """Prompts by name: the trained ones, those of further instructions, and others that the base has."""
    trained = {"query": embedder.prefix("query"), "document": embedder.prefix("document")}
    more = {name: embedder.prefix("query", text) for name, text in instructions.items() if name not in trained}
    own = read_named_prompts(embedder.source)
    own |= {name: trained["document"] for name in DOCUMENT_NAMES if name in own}  # another name of the same prompt
    return trained | more | {name: text for name, text in own.items() if name not in trained | more}
