"""Less memory for more time: what is inside of a block is computed again for its gradient.

Chen et al. (2016).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(
    block: nn.Module,
    *inputs: Tensor,
    recomputes: bool,
    again: AbstractContextManager[Any] | None = None,
) -> Any:
    """The block's value, dropout included; if it recomputes, its inputs alone are kept.

    `again` is entered each time that it is computed again, so it can be entered more than once.
    """
    if not (recomputes and torch.is_grad_enabled()):
        return block(*inputs)
    contexts = nullcontext(), again or nullcontext()
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: contexts)
