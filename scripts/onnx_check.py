"""Compare an ONNX file of an encoder's reranker with the directory that it was converted from.

    optimum-cli export onnx --model runs/reranker/final --library transformers --task text-classification runs/onnx
    python scripts/onnx_check.py --model runs/reranker/final --onnx runs/onnx

The exit status is 0 if their logits agree, 1 if not.
"""

import sys

from nestling.config import OnnxCheckConfig, parse_config, require_extra, require_model, run


def main() -> None:
    config = parse_config(OnnxCheckConfig, __doc__)
    require_model(config.model, f"--model {config.model}: no such directory")
    require_extra("onnx", "onnxruntime")

    from nestling.serving.onnx_model import compare_onnx

    report = compare_onnx(config.model, config.onnx)
    print(report.line())
    if report.difference > config.tolerance:
        print(f"they differ by more than {config.tolerance:g} (--tolerance)")
        sys.exit(1)


if __name__ == "__main__":
    run(main)
