"""Which activations a network has, as far as its modules and its Python code show them.

A network is not run for this. What is not seen here: a ReLU that is written as a comparison and a
product, one inside compiled code of another library, one that a name in a string leads to.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import nn

RELU = re.compile(r"(?<!leaky)(?<!leaky_)(?<![pr])relu", re.IGNORECASE)  # not PReLU, RReLU
OTHERS = re.compile(
    r"_?(leaky_|p|r)relu|hardswish|silu|swish|[gsc]?elu|mish|softplus|tanh", re.IGNORECASE
)
CLAMPS = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_", "threshold"}


@cache
def is_relu(name: str) -> bool:
    """Whether a class or function of this name is, or holds, a ReLU."""
    return RELU.search(name) is not None


@cache
def is_other(name: str) -> bool:
    """Whether a function of this name stands in a ReLU's place; a gate, as a sigmoid, does not."""
    return OTHERS.fullmatch(name.rstrip("_")) is not None


def hidden(net: nn.Module) -> str | None:
    """The first part whose activations Python does not call one by one; null for none."""
    for name, part in net.named_modules():
        if why := _opaque(part):
            return f"{name or 'the network'} ({type(part).__name__}) {why}"
    for value in reached(net):
        if isinstance(value, type) and issubclass(value, torch.autograd.Function):
            names = {value.__name__, *names_in(value.forward)}
            if any(map(is_relu, names)) or names & CLAMPS:
                return (
                    f"{value.__name__} is a torch.autograd.Function with a derivative of its own"
                )
        if isinstance(value, torch.jit.ScriptFunction) and "relu" in str(value.graph):
            return f"{value.name} is compiled by torch.jit"
    return None


def _opaque(part: nn.Module) -> str | None:
    kind = type(part)
    if isinstance(part, torch.jit.ScriptModule):
        return "is compiled by torch.jit"
    compiled = kind.__name__ == "OptimizedModule" or part._compiled_call_impl is not None
    if compiled or hasattr(kind.forward, "_torchdynamo_orig_callable"):
        return "is compiled by torch.compile"
    if "quantized" in kind.__module__.split("."):
        return "is quantised"
    if "RNN_RELU" == getattr(part, "mode", None) or (
        isinstance(part, nn.RNNCell) and part.nonlinearity == "relu"
    ):
        return "is one operation with its ReLU inside"
    if not inspect.isfunction(inspect.unwrap(kind.forward)):
        return "has no Python code"
    return None


def has_relu(net: nn.Module) -> bool:
    """Whether one of its modules is a ReLU, or a ReLU cut off at some height."""
    return any(
        isinstance(part, nn.ReLU)
        or (isinstance(part, nn.Hardtanh) and part.min_val == 0)  # ReLU6 is one
        or (isinstance(part, nn.Threshold) and part.threshold == part.value == 0)
        for part in net.modules()
    )


def mentions_relu(net: nn.Module) -> bool:
    """Whether its own classes, what they hold, or functions that they call name a ReLU."""
    return any(map(is_relu, _names(net)))


def others(net: nn.Module) -> list[str]:
    """Names of its activations that take the place of a ReLU."""
    kinds = {type(part).__name__ for part in net.modules()}
    found = {kind for kind in kinds if OTHERS.search(kind) and not is_relu(kind)}
    return sorted(found | {name.strip("_") for name in _names(net) if is_other(name)})


def _names(net: nn.Module) -> set[str]:
    """Names of whatever the code of a network refers to."""
    found = {type(part).__name__ for part in net.modules()}
    for value in reached(net):
        found |= names_in(value)
        if callable(value):
            found.add(getattr(value, "__name__", ""))
    return found


def reached(net: nn.Module) -> Iterator[Any]:
    """Methods of its own classes, what its modules hold, and functions called by these.

    Code of torch itself is left out.
    """
    waiting: list[Any] = []
    for part in net.modules():
        waiting += vars(part).values()
        for kind in filter(_is_own, type(part).__mro__):
            waiting += (value for name, value in vars(kind).items() if name != "__init__")
    seen: dict[int, Any] = {}  # holds on to them, so that no number comes twice
    while waiting:
        value = _plain(waiting.pop())
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value
        elif inspect.isfunction(value) and _is_own(value):
            waiting += _referred(value)


def _is_own(value: Any) -> bool:
    """Whether a class or function is not one of torch or of Python."""
    root = (getattr(value, "__module__", None) or "builtins").partition(".")[0]
    return root not in ("torch", "numpy") and root not in sys.stdlib_module_names


def _plain(value: Any) -> Any:
    """What stands behind a method, a property or a decorator."""
    if isinstance(value, property):
        value = value.fget
    owner = getattr(value, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner  # of its `apply`
    value = getattr(value, "__func__", getattr(value, "func", value))
    return inspect.unwrap(value) if inspect.isfunction(value) else value


def _referred(function: Any) -> Iterator[Any]:
    """Values of global names, of attributes of modules among them, and of a closure."""
    names = names_in(function)
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield value
        elif not value.__name__.partition(".")[0] == "torch":
            yield from (vars(value)[inner] for inner in names & vars(value).keys())
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet filled
            continue


def names_in(function: Any) -> set[str]:
    """Names that the code of a function uses, its inner functions included."""
    found, waiting = set(), [getattr(function, "__code__", None)]
    while waiting:
        code = waiting.pop()
        if isinstance(code, CodeType):
            found |= {*code.co_names}
            waiting += code.co_consts
    return found
