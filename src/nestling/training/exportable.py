"""What an export would refuse, refused before data and weights are read: a training takes hours, and then exports.

Each condition stands where the export has it, so that the words are the same.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from nestling.batches.prompts import END_OF_TEXT
from nestling.config import EmbedConfig, RerankConfig
from nestling.export.cross_encoder import require_release
from nestling.export.serving_files import BaseFiles, padding_token, require_space, written_dtype
from nestling.models.adapter_merging import lora_layers
from nestling.models.adapters import attach_lora
from nestling.models.answer_head import AnswerHead
from nestling.models.auto_classes import text_model_class
from nestling.models.causal_reranker import require_causal
from nestling.models.embedder import ModelFiles, read_model_files
from nestling.models.encoder_reranker import require_encoder
from nestling.models.model_sources import require_embedder
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.remote_code import is_trusted
from nestling.models.token_model import is_decoder, read_config
from nestling.training.models import export_dtype


def require_exportable(config: EmbedConfig | RerankConfig) -> None:
    """Raise the ValueError of an export that can be known from the settings and the files of the model alone."""
    embeds = isinstance(config, EmbedConfig)
    files = read_model_files(config.model) if embeds else ModelFiles()
    subfolder = files.subfolder
    model = read_config(config.model, subfolder)
    if embeds:
        require_embedder(config.model, model, pooled=files.pooling is not None)
    elif is_decoder(model):
        require_causal(model, config.model)
        require_release()
    else:
        require_encoder(model, config.model, new_head=True)
        model.num_labels = 1
    base = BaseFiles(config.model, subfolder)
    dtype = written_dtype(base, export_dtype(config))
    require_readable_files(base)
    require_padding(base)
    auto_class = text_model_class(model) if embeds else reranker_class(model)
    backbone = without_weights(model, auto_class, dtype, own_code=is_trusted(config.model))
    require_space(existing_folder(Path(config.output_dir)), dtype.itemsize * backbone.num_parameters())
    if config.tuning != "full":
        with torch.device("meta"):
            if auto_class is AutoModelForCausalLM:  # whose output layer is another
                backbone.set_output_embeddings(AnswerHead(backbone.get_output_embeddings(), no=0, yes=1))
            lora_layers(attach_lora(backbone, **asdict(config.lora)))


def reranker_class(config: PretrainedConfig) -> Any:
    """The Auto class that loads the model of a reranker."""
    return AutoModelForCausalLM if is_decoder(config) else AutoModelForSequenceClassification


def require_readable_files(base: BaseFiles) -> None:
    """Raise ValueError for a file of the model that an export reads and cannot."""
    for name in ("tokenizer_config.json", "sentence_bert_config.json"):
        base.json(name)
    base.json("config_sentence_transformers.json", root=True)


def require_padding(base: BaseFiles) -> None:
    """Raise ValueError for a tokenizer that has no token to pad with, and none to take for it."""
    if base.json("tokenizer_config.json").get("pad_token") is None:
        tokenizer = load_tokenizer(base.source, base.subfolder)
        padding_token(tokenizer, base.source, END_OF_TEXT if END_OF_TEXT in tokenizer.get_vocab() else None)


def without_weights(config: PretrainedConfig, auto_class: Any, dtype: torch.dtype, *, own_code: bool = False) -> Any:
    """The model of a configuration on the meta device, where its weights have a shape and no data.

    `own_code` is whether its class may come with the model.
    """
    with torch.device("meta"):
        return auto_class.from_config(config, dtype=dtype, attn_implementation="eager", trust_remote_code=own_code)


def existing_folder(path: Path) -> Path:
    """A folder, or the one in which it will be made."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())
