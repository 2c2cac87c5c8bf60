"""What operations of torch allocate."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Types and numbers of elements of the tensors that operations have made; views do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[torch.dtype, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self.found.add((each.dtype, each.numel()))
        return output
