"""Builds networks without giving them memory, and fills them with tensors that are there already.

A network of 2 GB that is built, initialised and then overwritten costs 4 GB and the time of its
random numbers. Here its parameters are born on the meta device, and those of the file, which may
be mapped from the disk, take their place. Buffers that no file holds are computed as ever.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

PARAMETERS_ARE_MADE_BY = (torch.empty, torch.randn)


class _Weightless(TorchFunctionMode):
    """Sends the functions that parameters are made with to the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in PARAMETERS_ARE_MADE_BY and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def weightless() -> Iterator[None]:
    """Parameters made in the block have no memory; initial values cost nothing."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # the same object, so that ties stay
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(cast(Any, emptied))  # its stub says None
    try:
        with torch.random.fork_rng(devices=[]), _Weightless():
            yield
    finally:
        hook.remove()


def is_complete(module: nn.Module) -> bool:
    """Whether every tensor of a module has memory."""
    return not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def give(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Makes tensors the module's own, as they are: no copy, and of the floating type they have.

    Parameters that were tied stay tied. The names must be those of the module.
    """
    tied = ties(module)
    module.load_state_dict(dict(tensors), assign=True)
    for first, *others in tied:
        for name in others:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, module.get_parameter(first))


def ties(module: nn.Module) -> list[list[str]]:
    """Names of parameters that are one, where there are several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]
