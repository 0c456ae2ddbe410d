"""Networks with ReLUs, read with Softplus in their place.

Ma et al. (2023):

    softplus(x) = log(1 + exp(beta x)) / beta        which tends to ReLU as beta grows

Its gradient is smooth, which is what guidance reads. It is log(2) / beta at 0, so accuracy falls
as beta falls; `robustguide smooth` tells how far.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robustguide.classifiers.activations import has_relu, hidden, is_other, is_relu, mentions_relu
from robustguide.classifiers.activations import others as other_activations
from robustguide.classifiers.wrappers import Wrapper
from robustguide.interfaces import Classifier


class Smooth(Wrapper):
    """Every ReLU of a classifier becomes Softplus(beta). Ma et al. (2023).

    The classifier is not changed: a ReLU is replaced where it is called, be it a module or a
    function, in place or not, in its own place or in several. ReLU6, and any ReLU cut off at a
    height c, becomes softplus(x) - softplus(x - c). Other activations stay as they are.

    What cannot be found stays a ReLU: one that is written out, such as `x * (x > 0)` or
    `torch.maximum(x, zero)`, or that lies in compiled code of another library.

    Args:
        classifier: Any classifier with ReLUs.
        beta: Positive; infinity leaves the ReLUs.
        clamps: Also takes `clamp(min=0)` for a ReLU. As often it guards a root or a logarithm, so
            that this is for the user to know.

    Raises:
        ValueError: For another beta, a network without ReLUs as far as can be told, or one whose
            ReLUs are hidden: compiled, quantised, within one operation with others, or with a
            derivative of their own. Calls raise it too, for what only shows then: no ReLU was
            called, or one inside an activation checkpoint, which would come back as a ReLU.
    """

    def __init__(self, classifier: Classifier, beta: float, clamps: bool = False) -> None:
        check_beta(beta)
        super().__init__(classifier)
        self.has_relu = checked(classifier)
        self.beta = beta
        self.clamps = clamps

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.softened(super().forward, x, sigma)

    def as_clean(
        self, images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of images that are read as clean ones."""
        return self.softened(super().as_clean, images, sigma)

    def softened(
        self, logits_of: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor
    ) -> Float[Tensor, "b k"]:
        """Logits of the classifier with Softplus for ReLU."""
        if math.isinf(self.beta):
            return logits_of(x, sigma)
        with Softening(self.beta, self.clamps) as softening:
            logits = logits_of(x, sigma)
        if not softening.count and not self.has_relu:
            raise ValueError(f"Smooth: the network called no ReLU{softening.seen()}.")
        return logits


class Softening(TorchFunctionMode):
    """In its block, ReLUs that Python calls are Softplus(beta); for networks of any kind.

    A call in place changes its argument, as the ReLU would. Values and gradients are those of
    `torch.nn.Softplus`, which is the identity above 20 / beta; the answer has the argument's type,
    also under autocast. Every thread has blocks of its own.

    Args:
        beta: Positive and finite.
        clamps: See `Smooth`.

    Attributes:
        count: How many ReLUs were replaced.
    """

    def __init__(self, beta: float, clamps: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.rules = RULES | CLAMPS if clamps else RULES
        self.count = 0
        self.others: set[str] = set()
        self.clamped = 0
        self.gradients, self.checkpoints = torch.is_grad_enabled(), checkpoints()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # relu.default of torch.ops
        rectifier = self.read(name, args, kwargs)
        if rectifier is None:
            return func(*args, **kwargs)
        self.refuse_other_backward()
        self.count += 1
        x, top, inplace = rectifier
        if inplace or name.endswith("_"):
            return x.copy_(softplus(x.clone(), self.beta, top))
        return softplus(x, self.beta, top)

    def read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Rectifier | None":
        """The ReLU that a call is; null for any other call."""
        rule = self.rules.get(name)
        if rule is None:
            self.note(name, args, kwargs)
            return None
        found = None if "out" in kwargs else rule(*args, **kwargs)
        return found if found is not None and found.x.is_floating_point() else None

    def refuse_other_backward(self) -> None:
        """Refuses a ReLU whose gradient would not be that of what is computed now.

        An activation checkpoint computes again in the backward pass, outside the block, and a
        `torch.autograd.Function` has a formula of its own; gradients are off in it.
        """
        repair = "turn checkpointing off; `chunk` of the guidance bounds memory instead"
        if checkpoints() > self.checkpoints:
            raise ValueError(
                "Smooth: a ReLU of the network is inside an activation checkpoint, whose backward "
                f"pass would compute it as a ReLU again; {repair}."
            )
        if self.gradients and not torch.is_grad_enabled():
            raise ValueError(
                "Smooth: a ReLU of the network is called where gradients are off: in no_grad, "
                "which cuts them, in a torch.autograd.Function, which has its own, or in an "
                f"activation checkpoint. Call it outside; {repair}."
            )

    def note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remembers what may have been meant, and refuses a ReLU that is part of something."""
        if name in CLAMPS:
            self.clamped += "out" not in kwargs and CLAMPS[name](*args, **kwargs) is not None
        elif is_other(name):
            self.others.add(name)
        elif is_relu(name):
            raise ValueError(
                f"Smooth: the network calls {name}, one operation with its ReLU inside; write it "
                "as two."
            )

    def seen(self) -> str:
        """What was called instead of a ReLU, for an error."""
        what = f"; it called {', '.join(sorted(self.others))}" if self.others else ""
        if self.clamped:
            what += (
                f"; it clamped at 0 {self.clamped} times, and if that is its activation, give "
                "clamps: true"
            )
        return what or "; leave Smooth out"


class Rectifier(NamedTuple):
    """A call of min(max(x, 0), top), which perhaps writes into x."""

    x: Tensor
    top: float = math.inf
    inplace: bool = False


def _relu(input: Tensor, inplace: bool = False) -> Rectifier:
    return Rectifier(input, math.inf, inplace)


def _relu6(input: Tensor, inplace: bool = False) -> Rectifier:
    return Rectifier(input, 6.0, inplace)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Rectifier | None:
    return Rectifier(input, max_val, inplace) if min_val == 0 else None


def _threshold(
    input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Rectifier | None:
    return Rectifier(input, math.inf, inplace) if threshold == value == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Rectifier | None:
    is_zero = isinstance(min, int | float) and min == 0  # a tensor would have to be waited for
    return Rectifier(input) if is_zero and max is None else None


Rule = Callable[..., Rectifier | None]
RULES: dict[str, Rule] = {
    "relu": _relu,
    "relu_": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "hardtanh_": _hardtanh,
    "threshold": _threshold,
    "threshold_": _threshold,
    "_threshold": _threshold,
}
CLAMPS: dict[str, Rule] = dict.fromkeys(
    ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"), _clamp
)


def softplus(x: Tensor, beta: float, top: float = math.inf) -> Tensor:
    """Softplus in place of min(max(x, 0), top), in the type of x."""
    soft = F.softplus(x, beta)
    if top < math.inf:
        soft = soft - F.softplus(x - top, beta)
    return soft.to(x.dtype)


def checkpoints() -> int:
    """How many activation checkpoints of torch this is inside of."""
    found, frame = 0, inspect.currentframe()
    while frame is not None:
        found += frame.f_code.co_filename == torch.utils.checkpoint.__file__
        frame = frame.f_back
    return found


def check_beta(beta: float) -> None:
    """Raises ValueError for a beta that is not positive."""
    if not beta > 0:  # NaN included
        raise ValueError(
            f"beta must be positive, got {beta}: Softplus(beta) tends to ReLU as it grows, and "
            "infinity (.inf) leaves the ReLUs. Give one such as 5."
        )


def checked(classifier: Classifier) -> bool:
    """Whether it has modules that are ReLUs; those of functions show when it is called.

    Raises:
        ValueError: ReLUs that are hidden, replaced already, or not there.
    """
    if any(isinstance(part, Smooth) for part in classifier.modules()):
        raise ValueError("Smooth: the classifier has a Smooth inside already; take one of them.")
    if part := hidden(classifier):
        raise ValueError(
            f"Smooth: the activations of the classifier cannot be replaced, since {part}. Give it "
            "as Python modules, before it is compiled or quantised."
        )
    if has_relu(classifier):
        return True
    found = other_activations(classifier)
    if found and not mentions_relu(classifier):
        raise ValueError(
            f"Smooth: the classifier has no ReLU; its activations are {', '.join(found)}. Leave "
            "Smooth out."
        )
    return False
