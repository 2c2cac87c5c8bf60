"""The files that make a CrossEncoder of sentence-transformers 6 of a reranker's directory."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from nestling.batches.pair_prompts import RerankPrompt
from nestling.export.reranker_expectation import Shape
from nestling.export.serving_files import write_json
from nestling.models.causal_reranker import CausalReranker
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import EncoderSettings

# The release of sentence-transformers from which on there are these modules.
RELEASE = 6
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
# Part of the chat template; `raise_exception` is a function that transformers, vLLM and llama.cpp give to templates.
REFUSE_CHATS = (
    '{% set roles = messages | map(attribute="role") | list %}'
    '{% if "query" not in roles or "document" not in roles %}'
    "{{ raise_exception(\"a reranker's prompt is made of a message of the role query and one of the role document; got "
    'the roles " + (roles | join(", "))) }}'
    "{% endif %}"
)


def require_release() -> None:
    """Raise ValueError unless the installed sentence-transformers loads the CrossEncoder of an exported reranker."""
    installed = version("sentence-transformers")
    if int(installed.split(".")[0]) < RELEASE:
        raise ValueError(
            f"a reranker is exported as a CrossEncoder of sentence-transformers {RELEASE}, and {installed} is "
            "installed, which could not check it; pip install -U sentence-transformers"
        )


def write_cross_encoder(reranker: Reranker, folder: Path, shape: Shape, max_length: int) -> None:
    """What makes a CrossEncoder of the directory."""
    if isinstance(reranker, EncoderReranker):
        write_encoder(reranker, folder, max_length)
    else:
        assert isinstance(reranker, CausalReranker)
        write_prompted(reranker, folder, shape, max_length)


def write_encoder(reranker: EncoderReranker, folder: Path, max_length: int) -> None:
    """The files of sentence-transformers 6; release 5 reads what config.json and tokenizer_config.json say."""
    write_modules(folder, [("", TRANSFORMER)])
    text = {"text": {"method": "forward", "method_output_name": "logits"}}
    described = {"transformer_task": "sequence-classification", "modality_config": text, "module_output_name": "scores"}
    write_json(folder / "sentence_bert_config.json", {**described, "max_seq_length": max_length})
    settings = reranker.settings
    prompted = {"query": settings.before_query} if settings.instruction else {}
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "CrossEncoder",
            "prompts": prompted,
            "default_prompt_name": "query" if prompted else None,
            "activation_fn": activation_path(settings),
        },
    )


def activation_path(settings: EncoderSettings) -> str:
    """The class of torch that makes a score of a logit, as sentence-transformers and servers name it."""
    return {
        "sigmoid": "torch.nn.modules.activation.Sigmoid",
        "none": "torch.nn.modules.linear.Identity",
    }[settings.activation]


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """modules.json of modules by path and class."""
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)],
    )


def write_prompted(reranker: CausalReranker, folder: Path, shape: Shape, max_length: int) -> None:
    """The same of a causal model, and the chat template that makes its prompts (vLLM reads it too)."""
    causal = shape == "causal"
    write_modules(folder, [("", TRANSFORMER), ("1_LogitScore", LOGIT_SCORE)][: 2 if causal else 1])
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
    """A Jinja template of the roles query and document, which refuses messages without one of them.

    A chat's system and user messages would give every pair the same prompt. The instruction is the content of a system
    message, else the variable `instruction` (vLLM passes that of a request on), else the trained one.
    All text stands in expressions: Jinja strips a line break from the end of a template, and some engines others.
    """
    marks = ("\0query\0", "\0document\0", "\0instruction\0")
    body = prompt.body(*marks)
    before, rest = body.split(marks[2])
    middle, rest = rest.split(marks[0])
    late, end = rest.split(marks[1])

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    def literal(text: str) -> str:
        return f"{{{{ {quoted(text)} }}}}"

    def content(role: str, default: str = "") -> str:
        return f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first{default} }}}}'

    # vLLM passes on None or "" where a request has no instruction.
    trained = f"instruction | default({quoted(prompt.instruction)}, true)"
    instruction = content("system", f" | default({trained})")
    pieces = [REFUSE_CHATS, literal(prompt.prefix + before), instruction, literal(middle), content("query")]
    return "".join([*pieces, literal(late), content("document"), literal(end + prompt.suffix)])
