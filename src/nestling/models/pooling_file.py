"""The pooling in the files of sentence-transformers."""

from collections.abc import Mapping

from nestling.models.json_files import FETCH, read_object
from nestling.models.pooling import POOL, Mode, Pooling

# The modes of the flags `pooling_mode_*` of older files, in the order of their concatenation. Newer files have one name
# or several under `pooling_mode`, those of our modes but for lasttoken.
POOLING_FLAGS: Mapping[str, Mode] = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "last",
}


# Their files do not say that prompts are left out of pooling; sentence-transformers knows them by name.
WITHOUT_PROMPT = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")


def read_pooling(model: str, file: str) -> tuple[Pooling, bool]:
    """The pooling of a model, and whether it reads the tokens of prompts.

    Raises:
        ValueError: There is no such file, or it names no pooling or an unknown one.
    """
    config, name = read_object(model, file), f"{model}/{file}"
    if not config:
        raise ValueError(f"{name}: is not there, and modules.json names it; {FETCH}")
    mode = config.get("pooling_mode")
    if mode is None:
        flags = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
        chosen = sorted(flags - {"include_prompt"}, key=lambda each: [*POOLING_FLAGS, each].index(each))
    else:
        chosen = mode if isinstance(mode, list) else [mode]
        if not all(isinstance(each, str) for each in chosen):
            raise ValueError(f"{name}: pooling_mode is {mode!r}, expected a text or a list of texts; {FETCH}")
    modes = [POOLING_FLAGS.get(each, each) for each in chosen]
    if not modes or not POOL.keys() >= set(modes):
        raise ValueError(
            f"{name}: asks for {' and '.join(chosen) or 'no pooling'}; supported are {', '.join(POOLING_FLAGS)}"
        )
    return "+".join(modes), config.get("include_prompt") is not False and model not in WITHOUT_PROMPT
