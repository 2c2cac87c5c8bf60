"""Directories of rerankers: a causal language model that is a CrossEncoder as well, and a classifier of one label.

The formats and the traps behind each line here: docs/serving.md.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from nestling.batches.packing import pad
from nestling.batches.pair_prompts import RerankPrompt
from nestling.batches.prompts import copy_backend
from nestling.export.embedder_card import Card, base_license, base_name
from nestling.export.reranker_card import RerankerFacts, render_reranker_card
from nestling.export.reranker_gate import (
    MERGED_LOGIT,
    ROUNDED_LOGIT,
    Pair,
    ScoreExpectation,
    ScoreReport,
    Shape,
    probe_pairs,
    tokenize_pairs,
    verify_reranker,
)
from nestling.export.serving_files import (
    BaseFiles,
    copy_tokenizer_files,
    loses_digits,
    model_config,
    new_directory,
    refuse_existing,
    require_space,
    tokenizer_config,
    write_adapter,
    write_json,
)
from nestling.models.encoding import evaluating
from nestling.models.merged_weights import MergedWeights, computing_with, without_adapters
from nestling.models.reranker import SETTINGS, Reranker, RerankerSettings
from nestling.models.scoring import logit_of
from nestling.models.weights import write_weights

# Longer probes cost minutes on a large model on the CPU, and say nothing new about truncation.
PROBE_QUERY, PROBE_DOCUMENT = 64, 192

SCORE = "score.weight"

# Read by sentence-transformers 6, which has no older form of these.
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"


def export_reranker(
    reranker: Reranker,
    output_dir: Path,
    *,
    shape: Shape = "causal",
    dtype: torch.dtype | None = None,
    card: Card | None = None,
    trained: bool = True,
) -> ScoreReport:
    """Write a serving directory, LoRA merged, after it has passed the parity gate.

    It is written beside `output_dir`, checked, forced onto the disk and renamed: `output_dir` exists whole or not at
    all. The live model is not changed. In a distributed run, call it on one rank.

    Args:
        reranker: The trained model.
        output_dir: Must not exist.
        shape: "causal" for what the base is, a causal language model, which sentence-transformers loads as a
            CrossEncoder; "classifier" for a sequence classification model of one label.
        dtype: Of the written weights; the base's own by default.
        card: What the run knows, for README.md.
        trained: Whether weights that all equal the base's are an error; False to change the shape of a directory.

    Raises:
        ValueError: `output_dir` exists, the disk is full, the adapters cannot be merged, the tokenizer has no token to
            pad with, or there is no classifier of this kind.
        ExportError: The written directory does not reproduce the model; it has been removed.
    """
    refuse_existing(output_dir)
    merged = MergedWeights(reranker.backbone)
    config = reranker_config(reranker, shape, dtype)
    dtype = getattr(torch, config["dtype"])
    require_space(output_dir.parent, merged.nbytes(dtype))
    expectation = expect_scores(reranker, merged, dtype, shape, trained)
    weights = merged if shape == "causal" else ClassifierWeights(reranker, merged, dtype)
    card = card or Card()
    facts = describe_reranker(reranker, card, config["architectures"][0], expectation)
    with new_directory(output_dir) as folder:
        write_json(folder / "config.json", config)
        write_weights(weights, folder, dtype=dtype, exact=[SCORE])
        write_reranker_tokenizer(reranker, folder)
        if expectation.max_length is not None:
            write_cross_encoder(reranker, folder, shape, expectation.max_length)
        if shape == "causal":
            (folder / SETTINGS).write_text(reranker.settings.to_json(), encoding="utf-8")
            write_adapter(reranker.backbone, folder)
        report = verify_reranker(folder, expectation)
        (folder / "README.md").write_text(render_reranker_card(facts, card, report), encoding="utf-8")
    return report


class ClassifierWeights(Mapping[str, Tensor]):
    """Those of a causal language model with `score.weight`, [1, D] float32, in place of the output layer.

    Its row is w_yes - w_no of the rows as they would be written in `dtype`, so that both shapes give the same scores.
    """

    def __init__(self, reranker: Reranker, merged: MergedWeights, dtype: torch.dtype) -> None:
        modules = without_adapters(reranker.backbone).named_modules()
        layer = next(f"{name}.weight" for name, module in modules if module is reranker.head)
        no, yes = merged[layer].detach()[reranker.head.answers].to(dtype).float()
        self._merged, self._score = merged, (yes - no)[None]
        self._names = [name for name in merged if name != layer]

    def __getitem__(self, name: str) -> Tensor:
        return self._score if name == SCORE else self._merged[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._names, SCORE])

    def __len__(self) -> int:
        return len(self._names) + 1


def describe_reranker(
    reranker: Reranker, card: Card, architecture: str, expectation: ScoreExpectation
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
    return config | {
        "architectures": [architecture],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": reranker.tokenizer.convert_tokens_to_ids(padding_token(reranker)),
    }


def padding_token(reranker: Reranker) -> str:
    """The tokenizer's own, or its end token; ValueError where it has neither."""
    token = reranker.tokenizer.pad_token or reranker.tokenizer.eos_token
    if token is None:
        raise ValueError(f"{reranker.source}: the tokenizer has neither a pad_token nor an eos_token; give it one")
    return str(token)


def write_reranker_tokenizer(reranker: Reranker, folder: Path) -> None:
    """The base's tokenizer files, byte for byte, but for what would break a reader or add special tokens."""
    base, tokenizer = BaseFiles(reranker.source), reranker.tokenizer
    original, config = base.path("tokenizer.json"), tokenizer_config(base)
    if original is None or tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        backend = copy_backend(tokenizer)
        backend.post_processor = None
        backend.save(str(folder / "tokenizer.json"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # BertTokenizer and others would put them back
    else:
        shutil.copyfile(original, folder / "tokenizer.json")
    copy_tokenizer_files(base, folder)
    if tokenizer.pad_token is None:
        config["pad_token"] = padding_token(reranker)
    write_json(folder / "tokenizer_config.json", config)


def write_cross_encoder(reranker: Reranker, folder: Path, shape: Shape, max_length: int) -> None:
    """What makes a CrossEncoder of the directory, and the chat template that makes its prompts (vLLM reads it too)."""
    causal = shape == "causal"
    modules = [("", TRANSFORMER), ("1_LogitScore", LOGIT_SCORE)][: 2 if causal else 1]
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)],
    )
    output = {"method": "forward", "method_output_name": "logits"}
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation" if causal else "sequence-classification",
            "modality_config": {"text": output, "message": {**output, "format": "flat"}},
            "module_output_name": "causal_logits" if causal else "scores",
            "max_seq_length": max_length,
        },
    )
    if causal:
        answers = {"true_token_id": reranker.pairs.yes_id, "false_token_id": reranker.pairs.no_id}
        write_json(folder / "1_LogitScore" / "config.json", answers)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "CrossEncoder",
            "prompts": {},
            "default_prompt_name": None,
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
        },
    )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.pop("chat_template", None)  # the base's, in whose place the file comes
    write_json(folder / "tokenizer_config.json", tokenizer)
    (folder / "chat_template.jinja").write_text(chat_template(reranker.settings.prompt), encoding="utf-8")


def chat_template(prompt: RerankPrompt) -> str:
    """A Jinja template of the roles query and document; a message of the role system replaces the instruction.

    All text stands in expressions: Jinja strips a line break from the end of a template, and some engines others.
    """
    marks = ("\0query\0", "\0document\0", "\0instruction\0")
    body = prompt.body(*marks)
    before, rest = body.split(marks[2])
    middle, rest = rest.split(marks[0])
    late, end = rest.split(marks[1])

    def literal(text: str) -> str:
        return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"

    def content(role: str, default: str = "") -> str:
        found = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
        return f"{{{{ {found}{default} }}}}"

    instruction = content("system", f" | default({json.dumps(prompt.instruction, ensure_ascii=False)})")
    pieces = [literal(prompt.prefix + before), instruction, literal(middle), content("query")]
    return "".join([*pieces, literal(late), content("document"), literal(end + prompt.suffix)])


def expect_scores(
    reranker: Reranker, merged: MergedWeights, dtype: torch.dtype, shape: Shape, trained: bool
) -> ScoreExpectation:
    """The probes' logits: as trained, and in float32 on the merged weights rounded to `dtype`."""
    settings = reranker.settings
    probe = replace(
        settings,
        query_max_length=min(settings.query_max_length, PROBE_QUERY),
        document_max_length=min(settings.document_max_length, PROBE_DOCUMENT),
    )
    pairs = probe_pairs(probe.query_max_length, probe.document_max_length)
    length = prompt_length(reranker, probe)
    own, public = own_prompts(reranker, pairs, probe), public_prompts(reranker, pairs, length)
    trainer = prompt_logits(reranker, own)
    precision = reranker.precision
    try:
        reranker.precision = torch.float32
        with computing_with(reranker.backbone, merged, dtype):
            own_logits, public_logits = prompt_logits(reranker, own), prompt_logits(reranker, public)
    finally:
        reranker.precision = precision
    exact = precision == torch.float32 and not loses_digits(reranker, dtype)
    return ScoreExpectation(
        shape=shape,
        settings=settings,
        probe_settings=probe,
        max_length=prompt_length(reranker, settings) if reads_whole(reranker, pairs) else None,
        probe_length=length,
        own=own_logits,
        public=public_logits,
        trainer=trainer,
        trainer_tolerance=MERGED_LOGIT if exact else ROUNDED_LOGIT,
        base=reranker.source if trained else None,
        prefix=f"{without_adapters(reranker.backbone).base_model_prefix}.",
    )


def prompt_length(reranker: Reranker, settings: RerankerSettings) -> int:
    """Tokens of a prompt with a query and a document at the limits of `settings`."""
    texts = settings.query_max_length + settings.document_max_length
    return min(reranker.pairs.overhead() + texts, reranker.max_positions)


def own_prompts(reranker: Reranker, pairs: Sequence[Pair], settings: RerankerSettings) -> list[list[int]]:
    """Token ids of prompts as we cut them: query and document each to its limit."""
    tokenize = partial(
        reranker.pairs,
        query_max_length=settings.query_max_length,
        document_max_length=settings.document_max_length,
    )
    return [tokenize(query, [document]).ids[0] for query, document in pairs]


def public_prompts(reranker: Reranker, pairs: Sequence[Pair], max_length: int) -> list[list[int]]:
    """The same as other libraries cut them: what is before the suffix, to what `max_length` leaves."""
    settings = reranker.settings
    return tokenize_pairs(
        reranker.tokenizer,
        pairs,
        prefix=settings.prefix,
        suffix=settings.suffix,
        instruction=settings.instruction,
        max_length=max_length,
    )


def reads_whole(reranker: Reranker, pairs: Sequence[Pair]) -> bool:
    """Whether prompts that are tokenised in one piece, as chat templates are, have the tokens of their parts."""
    prompt, backend = reranker.settings.prompt, copy_backend(reranker.tokenizer)
    texts = [prompt.prefix + prompt.body(*pair) + prompt.suffix for pair in pairs]
    whole = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    return whole == public_prompts(reranker, pairs, 10**9)


@torch.no_grad()
def prompt_logits(reranker: Reranker, prompts: Sequence[list[int]]) -> Tensor:
    """Logits of yes, [n] float32 on the CPU; one prompt at a time, since float32 may fill the memory."""
    with evaluating(reranker), reranker.computing():
        found = [logit_of(reranker(pad([ids], 0).to(reranker.device))) for ids in prompts]
    return torch.cat(found).float().cpu()
