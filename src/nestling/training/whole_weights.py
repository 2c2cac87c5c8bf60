"""What an embedder's settings cannot do with weights that ZeRO-3 or FSDP2 shard."""

from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.integrations import is_deepspeed_zero3_enabled

from nestling.config import EmbedConfig, require

INSTEAD = "train with DDP, ZeRO-1 or ZeRO-2"


def require_whole_weights(config: EmbedConfig, accelerator: Accelerator) -> None:
    """Raise ValueError, before any weights load, for settings that need whole weights where ranks hold shards of them.

    FSDP2 shards however it loads; transformers' is_fsdp_enabled only knows of fsdp_cpu_ram_efficient_loading.
    """
    whole = not (is_deepspeed_zero3_enabled() or accelerator.distributed_type == DistributedType.FSDP)
    require(
        whole or config.fixed_share is None,
        "interpolate: a share needs weights that are whole on each rank, and ZeRO-3 and FSDP2 shard them; "
        f"{INSTEAD}, or set true or false",
    )
    require(
        whole or config.loss.regression_weight == 0,
        "loss.regression_weight: its projection is fitted before training, to embeddings of a model that ZeRO-3 and "
        f"FSDP2 shard; {INSTEAD}",
    )
