"""FLOPs, counted as operations run.

Counted are convolutions, matrix products and attention, a multiplication and an addition as two.
What works element by element, such as norms and activations, counts nothing.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Words in names of operations that multiply matrices in some way.
MULTIPLIES = re.compile(
    r"(^|_)(mm|mv|dot|vdot|ger|addr|b?addbmm|addmm|addmv|bmm|matmul|einsum|conv\w*|linear|lstm|gru"
    r"|rnn|fft|cdist|attention|attn|encoder|trilinear|linalg)(_|$)"
)
# Of these, element by element, or shapes alone.
CHEAP = re.compile(r"upsample|vector_norm")
# Attention that torch has and counts nowhere, by what takes the same arguments and is counted.
SIMILAR = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "_scaled_dot_product_flash_attention_backward"
    ),
}


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts in a block, and disturbs nothing there.

    The formulas are torch's. Its own counter follows modules as well, by hooks that a leaf may
    not have which is differentiated, as the state of a sampler is.

    Attributes:
        by_dtype: FLOPs so far, by the type of the numbers that are multiplied.
        unknown: Operations that multiply matrices, and whose FLOPs are not known.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.by_dtype: dict[torch.dtype, int] = {}
        self.unknown: set[str] = set()

    @property
    def flops(self) -> int:
        """So far."""
        return sum(self.by_dtype.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        name = getattr(packet, "__name__", str(packet))
        formula = formula_of(packet, name)
        if formula is None and is_product(name) and hasattr(func, "decompose"):
            with self:  # in inference mode torch has not taken it apart yet
                made = func.decompose(*args, **named)
            if made is not NotImplemented:
                return made
        made = func(*args, **named)
        if formula is not None:
            dtype = next((each.dtype for each in args if isinstance(each, Tensor)), torch.float32)
            flops = formula(*args, **named, out_val=made)
            self.by_dtype[dtype] = self.by_dtype.get(dtype, 0) + flops
        elif is_product(name):
            self.puzzled(name)
        return made

    def puzzled(self, name: str) -> None:
        """Notes an operation whose FLOPs are not known."""
        self.unknown.add(name)


def formula_of(packet: Any, name: str) -> Callable[..., int] | None:
    """Counts an operation; null where that is not known."""
    if name in SIMILAR:
        packet = getattr(torch.ops.aten, SIMILAR[name])
    found: Callable[..., int] | None = flop_registry.get(packet)
    return found


def is_product(name: str) -> bool:
    """Whether an operation of that name multiplies matrices."""
    return bool(MULTIPLIES.search(name)) and not CHEAP.search(name)
