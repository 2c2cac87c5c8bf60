"""Directories of rerankers: a causal language model that is a CrossEncoder as well, and a classifier of one label.

The formats and the traps behind each line here: docs/serving.md.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from nestling.batches.prompts import copy_backend
from nestling.console import say, working
from nestling.export.card import Card, base_license, base_name
from nestling.export.cross_encoder import activation_path, require_release, write_cross_encoder
from nestling.export.encoder_card import render_encoder_card
from nestling.export.gate import require_passed
from nestling.export.reranker_card import RerankerFacts, render_reranker_card
from nestling.export.reranker_expectation import RerankerExpectation, Shape, expect_scores, prompt_length
from nestling.export.reranker_gate import RerankerReport, check_reranker
from nestling.export.serving_files import (
    BaseFiles,
    copy_code,
    copy_tokenizer_files,
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
from nestling.models.causal_reranker import CausalReranker
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.merged_weights import MergedWeights
from nestling.models.model_tokenizer import lower_cases
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import SETTINGS
from nestling.models.rounded_weights import RoundedWeights
from nestling.models.safetensors_writer import Spec
from nestling.models.weights import write_weights

SCORE = "score.weight"


def export_reranker(
    reranker: Reranker,
    output_dir: Path,
    *,
    shape: Shape | None = None,
    dtype: torch.dtype | None = None,
    card: Card | None = None,
    trained: bool = True,
    allow_failed_gate: bool = False,
) -> RerankerReport:
    """Write a serving directory, LoRA merged, after it has passed the parity gate.

    It is written beside `output_dir`, checked, forced onto the disk and renamed: `output_dir` exists whole or not at
    all. The live model is not changed. In a distributed run, call it on one rank.

    Args:
        reranker: The trained model.
        output_dir: Must not exist.
        shape: "causal" for what the base is, a causal language model, which sentence-transformers loads as a
            CrossEncoder; "classifier" for a sequence classification model of one label. "encoder", such a model whose
            pairs its tokenizer makes, is the only one of an encoder. By default what the model is.
        dtype: Of the written weights; the base's own by default.
        card: What the run knows, for README.md.
        trained: Whether weights that all equal the base's are an error; False to change the shape of a directory.
        allow_failed_gate: Write a directory that fails the gate too; its card says so.

    Raises:
        ValueError: `output_dir` exists, the adapters cannot be merged, the tokenizer has no token to pad with, there is
            no classifier of this kind, or an encoder is to have another shape.
        WriteError: There is no room for it, or it could not be written.
        ExportError: The written directory does not reproduce the model; it has been removed.
    """
    refuse_existing(output_dir)
    return_large_blocks()
    shape = shape_of(reranker, shape)
    require_release()
    merged = MergedWeights(reranker.backbone)
    config = reranker_config(reranker, shape, dtype)
    dtype = written_dtype(BaseFiles(reranker.source), dtype)
    require_space(output_dir.parent, merged.nbytes(dtype))
    say(f"exporting to {output_dir}: the model's own scores, to compare with")
    expectation = expect_scores(reranker, merged, dtype, shape, trained)
    written = expectation.outputs.weights
    weights = ClassifierWeights(reranker, written) if shape == "classifier" else written
    card = card or Card()
    facts = describe_reranker(reranker, card, config["architectures"][0], expectation)
    with new_directory(output_dir) as folder:
        write_json(folder / "config.json", config)
        copy_code(BaseFiles(reranker.source), folder)
        with working("writing the weights"):
            write_weights(weights, folder, specs=weights.specs())
        if shape == "encoder":
            write_pair_tokenizer(reranker, folder, prompt_length(reranker, reranker.settings))
        else:
            write_reranker_tokenizer(reranker, folder)
        if expectation.max_length is not None:
            write_cross_encoder(reranker, folder, shape, expectation.max_length)
        if shape != "classifier":
            (folder / SETTINGS).write_text(reranker.settings.to_json(), encoding="utf-8")
        if shape == "causal":
            write_adapter(reranker.backbone, folder)
        report = check_reranker(folder, expectation)
        require_passed(report, output_dir, allow_failed=allow_failed_gate)
        (folder / "README.md").write_text(render(reranker, facts, card, report), encoding="utf-8")
    return report


def render(reranker: Reranker, facts: RerankerFacts, card: Card, report: RerankerReport) -> str:
    """README.md of either kind."""
    if isinstance(reranker, EncoderReranker):
        return render_encoder_card(facts, reranker.settings, reranker.config.model_type, card, report)
    return render_reranker_card(facts, card, report)


def shape_of(reranker: Reranker, shape: Shape | None) -> Shape:
    """The shape to write; ValueError for one that the model cannot have."""
    encodes = isinstance(reranker, EncoderReranker)
    if shape is not None and encodes != (shape == "encoder"):
        kind = "an encoder" if encodes else "a causal language model"
        raise ValueError(f"{reranker.source} is {kind}, which has no shape {shape}; leave shape away")
    return "encoder" if encodes else shape or "causal"


class ClassifierWeights(Mapping[str, Tensor]):
    """Those of a causal language model with `score.weight`, [1, D] float32, in place of the output layer.

    Its row is w_yes - w_no of the rows as they would be written, times the scale of the model's logits, so that both
    shapes give the same scores.
    """

    def __init__(self, reranker: Reranker, written: RoundedWeights) -> None:
        assert isinstance(reranker, CausalReranker)
        modules = without_adapters(reranker.backbone).named_modules()
        layer = next(f"{name}.weight" for name, module in modules if module is reranker.head)
        no, yes = written[layer][reranker.head.answers.cpu()].float()
        self._written, self._score = written, reranker.head.transform.scale * (yes - no)[None]
        self._names = [name for name in written if name != layer]

    def __getitem__(self, name: str) -> Tensor:
        return self._score if name == SCORE else self._written[name]

    def specs(self) -> dict[str, Spec]:
        """Shape and dtype of each tensor."""
        score = Spec(tuple(self._score.shape), self._score.dtype)
        return {name: spec for name, spec in self._written.specs().items() if name in self._names} | {SCORE: score}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._names, SCORE])

    def __len__(self) -> int:
        return len(self._names) + 1


def describe_reranker(
    reranker: Reranker, card: Card, architecture: str, expectation: RerankerExpectation
) -> RerankerFacts:
    """What the model card says about the directory."""
    shape, trained = expectation.shape, expectation.base is not None
    base = card.base or base_name(reranker.source)
    return RerankerFacts(
        title=card.title or f"{base}, {'fine-tuned' if trained else shape}",
        base=base,
        license=base_license(reranker.source),
        shape=shape,
        architecture=architecture,
        settings=reranker.settings,
        max_length=prompt_length(reranker, reranker.settings),
        cross_encoder=expectation.max_length is not None,
        lora=shape == "causal" and isinstance(reranker.backbone, PeftModel),
        trained=trained,
    )


def reranker_config(reranker: Reranker, shape: Shape, dtype: torch.dtype | None) -> dict[str, Any]:
    """config.json of a shape; ValueError where transformers has no classifier for the model."""
    model = without_adapters(reranker.backbone)
    config = model_config(BaseFiles(reranker.source), model.config, dtype)
    if isinstance(reranker, EncoderReranker):
        return encoder_config(reranker, config)
    assert isinstance(reranker, CausalReranker)
    if shape == "causal":
        return config | {"architectures": [type(model).__name__]}
    architecture = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model.config.model_type)
    if architecture is None:
        raise ValueError(
            f"transformers has no sequence classification for {model.config.model_type} models; use the shape causal"
        )
    if reranker.head.bias is not None:
        raise ValueError(
            "the output layer has a bias, and that of a sequence classification has none; use the shape causal"
        )
    if reranker.head.transform.cap is not None:
        raise ValueError(
            f"the model caps its logits at {reranker.head.transform.cap:g}, and a sequence classification does not; "
            "use the shape causal"
        )
    return config | {
        "architectures": [architecture],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": reranker.tokenizer.convert_tokens_to_ids(padding_token(reranker.tokenizer, reranker.source)),
    }


def encoder_config(reranker: EncoderReranker, config: dict[str, Any]) -> dict[str, Any]:
    """config.json of an encoder: a classifier of one label, and what sentence-transformers and vLLM make of a logit."""
    labels = (
        {} if len(config.get("id2label") or {}) == 1 else {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    )
    config.pop("sbert_ce_default_activation_function", None)
    known = config.get("sentence_transformers") or {}
    return {
        **config,
        **labels,
        "architectures": [type(reranker.classifier).__name__],
        "sentence_transformers": {**known, "activation_fn": activation_path(reranker.settings)},
    }


def write_pair_tokenizer(reranker: Reranker, folder: Path, max_length: int) -> None:
    """The base's tokenizer files, byte for byte, but for the length at which sentence-transformers 5 cuts pairs."""
    base, tokenizer = BaseFiles(reranker.source), reranker.tokenizer
    if base.own_path("tokenizer.json") is not None and not lower_cases(base.source, base.subfolder):
        write_tokenizer_files(reranker, folder, None, {"model_max_length": max_length})
        return
    settings = {"model_max_length": max_length, "model_input_names": tokenizer.model_input_names}
    write_tokenizer_files(reranker, folder, copy_backend(tokenizer), settings)


def write_reranker_tokenizer(reranker: Reranker, folder: Path) -> None:
    """The base's tokenizer files, byte for byte, but for what would break a reader or add special tokens."""
    base, tokenizer, backend = BaseFiles(reranker.source), reranker.tokenizer, None
    adds_tokens = tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]
    if adds_tokens or base.own_path("tokenizer.json") is None:
        backend = copy_backend(tokenizer)
        backend.post_processor = None
    write_tokenizer_files(reranker, folder, backend, {})


def write_tokenizer_files(
    reranker: Reranker, folder: Path, backend: Tokenizer | None, settings: dict[str, Any]
) -> None:
    """The tokenizer's files.

    Args:
        reranker: The model.
        folder: Where they are written.
        backend: What is written as tokenizer.json; None for a copy of the base's.
        settings: What tokenizer_config.json has in the place of the base's.
    """
    base, tokenizer = BaseFiles(reranker.source), reranker.tokenizer
    config = tokenizer_config(base)
    original = base.own_path("tokenizer.json")
    if backend is None:
        assert original is not None
        shutil.copyfile(original, folder / "tokenizer.json")
    else:
        backend.save(str(folder / "tokenizer.json"))
        # BertTokenizer and others would put special tokens and normalisers of their own in the place of it.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    copy_tokenizer_files(base, folder)
    if tokenizer.pad_token is None:
        config["pad_token"] = padding_token(tokenizer, reranker.source)
    write_json(folder / "tokenizer_config.json", config | settings)
