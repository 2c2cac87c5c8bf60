"""Settings of low-rank adapters, in the words of peft."""

from dataclasses import dataclass, field

from nestling.config.checks import require, require_at_least


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters.

    Args:
        r: Rank.
        alpha: Scale: the update is alpha / r times B A (lora_alpha of peft).
        dropout: Dropout before A (lora_dropout of peft).
        target_modules: Names of the layers to adapt; every linear layer when empty.
    """

    r: int = 32
    alpha: int = 64
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.r > 0, f"lora.r is {self.r}, expected at least 1 (for full fine-tuning set tuning: full)")
        require_at_least(1, self, "alpha", section="lora.")
        require(0 <= self.dropout < 1, f"lora.dropout is {self.dropout:g}, expected 0 <= dropout < 1")
