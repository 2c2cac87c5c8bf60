"""Advice on each finding, for the servers in docs/serving.md."""

from collections.abc import Sequence

from nestling.models.pooling import Pooling

ADVICE = {
    name: " ".join(text.split())
    for name, text in {
        "nan": """
            Compute in float32. TEI on Turing cards: the image turing-1.9, or USE_FLASH_ATTENTION=False.
            """,
        "EOS": """
            The end token comes from the post-processor of tokenizer.json: serve the directory's own tokenizer files.
            llama.cpp: convert with a convert_hf_to_gguf.py of August 2025 or later, which reads it from there.
            """,
        "prompt": """
            The client puts prompts before texts, the server none. TEI: leave out --default-prompt and
            --default-prompt-name. vLLM: send input, not messages.
            """,
        "white space": """
            sentence-transformers before 6 and infinity do so. Strip queries and documents in the client, so that all
            servers answer the same.
            """,
        "modules": """
            TEI 1.8 and vLLM 0.11 and later read the Dense modules that modules.json names, and no others; check the
            version, or use sentence-transformers.
            """,
        "model": """
            Other weights, or texts that are changed on the way: compare what the server lists as its model with the
            directory.
            """,
        "precision": """
            Quantised weights or a shorter type. vLLM: --dtype float32. TEI: --dtype float32. llama.cpp: convert with
            --outtype f32. Or lower --least_cosine if this much is all right.
            """,
        "normalisation": """
            Normalise in the client. Or vLLM: --pooler-config '{"use_activation": true}', "normalize" in older ones.
            llama.cpp: "embd_normalize": 2 in the request.
            """,
        "width": """
            Another model, or a default of dimensions in the server's settings.
            """,
        "ignored": """
            Cut in the client and normalise again.
            """,
        "uncut": """
            Normalise again in the client: without it, dot products are no cosines.
            """,
        "padding": """
            The server needs an attention mask, and pooling that goes by it. Until then send one text a request.
            """,
        "truncation": """
            Cut texts in the client, or set the server's limit to the directory's. vLLM: without --max-model-len it
            reads the directory's; in requests truncate_prompt_tokens without truncation_side, since its values "right"
            and "left" cut off the end token or keep the end of a text. TEI: --auto-truncate.
            """,
        "encoding": """
            Ask for encoding_format: float.
            """,
        "template": """
            vLLM: --chat-template DIR/chat_template.jinja, which releases of 2026 use for scores, and without which they
            ignore the directory's; with older ones the client puts prefix and suffix around query and document.
            llama.cpp has a template of its own.
            """,
        "instruction": """
            Serve the directory's own chat_template.jinja, which holds the trained instruction. llama.cpp: put it into
            the converter's template.
            """,
        "sides": """
            Query and document stand in each other's place: look at the client or proxy between.
            """,
        "logits": """
            Take the sigmoid in the client; the order is the same. TEI: raw_scores must be false. vLLM: use_activation
            must not be false.
            """,
        "probabilities": """
            The model's scores are its logits. TEI: raw_scores must be true. vLLM: use_activation must be false, or the
            directory's config.json, which names the activation, is not the one that is served.
            """,
        "pair": """
            Query and document are two texts, which the directory's own tokenizer.json joins: send them as such, and
            serve its files.
            """,
        "types": """
            The server gives the model no token types: take a newer release of it, or serve a model without them, such
            as XLM-R or ModernBERT.
            """,
        "request": """
            Put the instruction before the query in each request: servers have no prompt for the queries of rerankers.
            """,
        "twice": """
            The sigmoid is taken twice: once by the model's activation, once by the server. Leave one out.
            """,
        "inverted": """
            The answers are in the wrong order. vLLM: "classifier_from_token": ["no", "yes"], in this order.
            """,
        "end": """
            Serve the directory's own tokenizer files, which add no special tokens.
            """,
        "scores": """
            Other weights, another template, or texts that are changed on the way.
            """,
    }.items()
}


def pooling_advice(pooling: Pooling) -> str:
    """How to serve a directory of this pooling."""
    tei = {"last": "last-token", "mean": "mean", "cls": "cls"}[pooling]
    # The GGUF of an encoder says how it pools; that of a decoder does not always.
    llama = "--pooling last" if pooling == "last" else "leave --pooling out"
    vllm = f'--pooler-config \'{{"pooling_type": "{pooling.upper()}"}}\''
    return f"vLLM: {vllm}. TEI: --pooling {tei}. llama.cpp: {llama}."


def dimension_advice(dim: int, trained: Sequence[int]) -> str:
    """What to do where `dim` dimensions are refused, of a directory whose config.json names `trained`."""
    cut = "Or cut in the client and normalise again."
    if trained and dim not in trained:
        return f"vLLM answers trained dimensions only: request one of {', '.join(map(str, trained))}. {cut}"
    return f"""vLLM: --hf-overrides '{{"is_matryoshka": true}}', where config.json lacks it. {cut}"""
