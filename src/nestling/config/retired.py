"""Settings that had another name, or are gone; the error of the parser says what to write now."""

import re
from collections.abc import Set

RENAMED = {
    "absolute": "max_score",
    "attention": "attn_implementation",
    "candidates": "num_personas",
    "checkpoint_length": "gradient_checkpointing_length",
    "compute": "precision",
    "cpu": "use_cpu",
    "dim_weights": "matryoshka_weights",
    "dims": "matryoshka_dims",
    "early_stopping": "early_stopping_patience",
    "endpoint.key_variable": "endpoint.api_key_env",
    "epochs": "num_train_epochs",
    "graph_memory": "activation_memory",
    "keep_checkpoints": "save_total_limit",
    "key_env": "api_key_env",
    "log_steps": "logging_steps",
    "lora.targets": "lora.target_modules",
    "loss.distillation": "loss.distillation_weight",
    "margin": "absolute_margin",
    "negatives": "num_negatives",
    "percent": "max_score_ratio",
    "positives": "num_positives",
    "processes": "num_processes",
    "refresh.percent": "refresh.max_score_ratio",
    "schedule": "lr_scheduler_type",
    "warmup": "warmup_ratio",
    "workers": "dataloader_num_workers",
}
# What to do instead; said where the settings have a key that it names.
REMOVED = {
    "export_best": "the best checkpoint by dev is exported; scripts/export.py --checkpoint exports another",
    "loss.document_document": "loss.terms lists the terms that count",
    "loss.hard_negatives": "num_negatives: 0 draws none",
    "loss.label_space": "loss.objective is pointwise or pointwise_vocabulary",
    "loss.query_document": "loss.terms lists the terms that count",
    "loss.query_query": "loss.terms lists the terms that count",
    "max_bad_steps": "five steps in a row that are not finite end every run; a lower learning_rate may help",
    "no": "answers takes both words, as in answers: ['yes', 'no']",
    "refresh.margin": "refresh.max_score_ratio is the rule for scores",
    "share_prefix": "attn_implementation: auto runs the common tokens of prompts once, varlen does not",
    "tensorboard": "report_to: [tensorboard] takes its place",
    "wandb": "report_to: [wandb] takes its place, with the project in the environment variable WANDB_PROJECT",
    "yes": "answers takes both words, as in answers: ['yes', 'no']",
}


def retired(key: str, known: Set[str]) -> str | None:
    """What became of a key that the parser does not know; None if it has always been unknown.

    Args:
        key: Dotted name or its last part: the parser's error has either.
        known: Dotted names of all settings of the script.
    """
    for old, new in RENAMED.items():
        if key in (old, old.rpartition(".")[2]) and new in known:
            return f"it is called '{new}' now"
    for old, reason in REMOVED.items():
        if key in (old, old.rpartition(".")[2]) and not known.isdisjoint(re.findall(r"[\w.]+", reason)):
            return reason
    return None
