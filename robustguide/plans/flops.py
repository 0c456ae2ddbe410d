"""FLOPs of networks, counted as they run on tensors that have shapes and no memory.

What is counted, `robustguide.machine.flops` says.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from robustguide.interfaces import Classifier, Codec, Denoiser
from robustguide.machine.flops import Tally


class Counter(Tally):  # type: ignore[no-untyped-call]  # torch's
    """Counts in a block, and refuses there what it cannot count."""

    def puzzled(self, name: str) -> None:
        """Refuses.

        Raises:
            ValueError: Always, since the sum would be too small.
        """
        raise ValueError(
            f"The FLOPs of {name} are not known, so the sum would be too small; write the "
            "network with convolutions, matrix products (mm, bmm) or "
            "scaled_dot_product_attention."
        )


@dataclass
class Kept:
    """What a graph keeps for its gradient.

    Attributes:
        bytes: Of the tensors, each storage once; parameters are not among them.
    """

    bytes: int = 0
    seen: set[StorageWeakRef] = field(default_factory=set)

    def note(self, tensor: Tensor) -> Tensor:
        """Adds a tensor."""
        storage = tensor.untyped_storage()
        if (reference := reference_to(storage)) not in self.seen:
            self.seen.add(reference)
            self.bytes += storage.nbytes()
        return tensor


def reference_to(storage: torch.UntypedStorage) -> StorageWeakRef:
    """By which a storage is known again."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # torch's


@contextmanager
def keeping(module: nn.Module) -> Iterator[Kept]:
    """Counts what graphs that are made in a block keep, apart from a module's own tensors."""
    own = (*module.parameters(), *module.buffers())
    kept = Kept(seen={reference_to(tensor.untyped_storage()) for tensor in own})
    with saved_tensors_hooks(kept.note, lambda tensor: tensor):
        yield kept


@dataclass(frozen=True)
class Work:
    """FLOPs of one call.

    Attributes:
        forward: Of the call.
        backward: Of the gradient of its result by its input, without those of the weights.
        kept_bytes: What it keeps for that gradient.
    """

    forward: int
    backward: int = 0
    kept_bytes: int = 0


@torch.no_grad()
def work_of(
    module: nn.Module, call: Callable[[Tensor], Any], x: Tensor, differentiates: bool
) -> tuple[Work, Any]:
    """Work of `call(x)`, and what it answers; a tuple's first part is differentiated.

    Args:
        module: Its own tensors are not told among those kept.
        call: Runs it.
        x: Input on the meta device.
        differentiates: Whether to count the gradient as well.
    """
    with Counter() as counter:
        if not differentiates:
            answer = call(x.detach())
            return Work(counter.flops), answer
        leaf = x.detach().requires_grad_()
        with torch.enable_grad(), keeping(module) as kept:
            answer = call(leaf)
            first = answer if isinstance(answer, Tensor) else answer[0]
            total = first.sum()
        forward = counter.flops
        torch.autograd.grad(total, leaf)
        return Work(forward, counter.flops - forward, kept.bytes), answer


LABELS = {
    "predict": "forward",
    "forward": "forward",
    "as_clean": "forward",
    "decode": "decode",
    "encode": "encode",
}
METHODS: dict[type[nn.Module], tuple[str, ...]] = {
    Denoiser: ("predict",),
    Classifier: ("forward", "as_clean"),
    Codec: ("decode", "encode"),
}


@dataclass
class Asked:
    """What one network was asked.

    Attributes:
        rows: Given to it.
        flops: Of these.
        pulled_rows: Through which a gradient came back.
        pulled_flops: Of these gradients.
        kept_bytes: Largest that one row kept for its gradient.
    """

    rows: int = 0
    flops: int = 0
    pulled_rows: int = 0
    pulled_flops: int = 0
    kept_bytes: float = 0

    def forward(self, rows: int, work: Work) -> None:
        """Adds a call."""
        self.rows += rows
        self.flops += work.forward
        self.kept_bytes = max(self.kept_bytes, work.kept_bytes / rows)

    def backward(self, rows: int, work: Work) -> None:
        """Adds a gradient."""
        self.pulled_rows += rows
        self.pulled_flops += work.backward


@dataclass
class Ledger:
    """Stands between networks and who asks them.

    A network is run the first time that it is asked with inputs of some shapes; later its answer
    is stood in for, at the same work.

    Attributes:
        asked: By network and kind of work.
        known: Work and answer of calls, by method and shapes.
        measured: FLOPs of what was really run.
        within: The call under way; networks inside of it are its own.
    """

    asked: dict[tuple[nn.Module, str], Asked] = field(default_factory=dict)
    known: dict[Any, tuple[Work, Any]] = field(default_factory=dict)
    measured: int = 0
    within: list[nn.Module] = field(default_factory=list)

    @contextmanager
    def between(self, model: nn.Module) -> Iterator[None]:
        """Stands before all networks of a module in a block."""
        with ExitStack() as stack:
            for module in model.modules():
                for kind, methods in METHODS.items():
                    for method in methods if isinstance(module, kind) else ():
                        stack.enter_context(self.before(module, method))
            yield

    @contextmanager
    def before(self, module: nn.Module, method: str) -> Iterator[None]:
        """Stands before one method in a block."""
        call = getattr(module, method)

        def asking(x: Tensor, *others: Any, **named: Any) -> Any:
            if self.within:
                return call(x, *others, **named)
            pulls = x.requires_grad and torch.is_grad_enabled()
            tensors = [each for each in (x, *others, *named.values()) if torch.is_tensor(each)]
            shapes = tuple((tuple(each.shape), each.dtype) for each in tensors)
            key = (module, method, shapes, pulls)
            if key not in self.known:
                self.within.append(module)
                try:
                    self.known[key] = work_of(
                        module, lambda x: call(x, *others, **named), x, pulls
                    )
                finally:
                    self.within.pop()
                self.measured += self.known[key][0].forward + self.known[key][0].backward
            asked = self.asked.setdefault((module, LABELS[method]), Asked())
            return stood_in(x, *self.known[key], asked)

        setattr(module, method, asking)
        try:
            yield
        finally:
            delattr(module, method)


def stood_in(x: Tensor, work: Work, answer: Any, asked: Asked) -> Any:
    """What a network would answer, without being run."""
    asked.forward(len(x), work)
    parts = (answer,) if isinstance(answer, Tensor) else tuple(answer)
    tensors = [each for each in parts if each is not None]
    made = iter(_StandIn.apply(x, tensors, work, asked))  # type: ignore[no-untyped-call]  # torch's
    if isinstance(answer, Tensor):
        return next(made)
    return type(answer)(*(None if each is None else next(made) for each in parts))


class _StandIn(torch.autograd.Function):
    """New tensors of the shapes of an answer; a gradient that comes back is noted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, answer: list[Tensor], work: Work, asked: Asked
    ) -> tuple[Tensor, ...]:
        ctx.like, ctx.work, ctx.asked = torch.empty_like(x), work, asked
        return tuple(torch.empty_like(tensor) for tensor in answer)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        ctx.asked.backward(len(ctx.like), ctx.work)
        return ctx.like, None, None, None
