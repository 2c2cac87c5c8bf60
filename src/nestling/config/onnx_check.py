"""Settings of scripts/onnx_check.py."""

from dataclasses import dataclass

from nestling.config.checks import require


@dataclass(frozen=True, kw_only=True)
class OnnxCheckConfig:
    """Settings of scripts/onnx_check.py.

    Args:
        model: The directory of the reranker that was converted.
        onnx: The directory that the conversion wrote.
        tolerance: Largest difference of a logit at which the file passes.
    """

    model: str
    onnx: str
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require(self.tolerance > 0, f"tolerance is {self.tolerance:g}, expected more than 0")
