"""Arguments that name a class, whose help does not wait for torch."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser


def add_object(
    arguments: ArgumentParser,
    words: Sequence[str],
    name: str,
    base: str,
    what: str,
    takes_text: bool = False,
    **others: Any,
) -> None:
    """Adds an argument that is built from a class path and the arguments of that class.

    Args:
        arguments: Gets it.
        words: The command line. Where it asks for help, the class is not imported.
        name: Such as "--data".
        base: Class path of what is built, or of what it inherits from.
        what: The help.
        takes_text: Whether text that is no class path is taken as it is.
        others: Of `add_argument`.
    """
    if asks_for_help(words):
        what = f"{what}; a {base}, and {name}.help CLASS lists the arguments of a class"
        arguments.add_argument(name, type=str, help=what, **others)
        return
    module, _, kind = base.rpartition(".")
    found = getattr(import_module(module), kind)
    arguments.add_argument(name, type=found | str if takes_text else found, help=what, **others)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether help is all that a command line will get."""
    return not {"-h", "--help"}.isdisjoint(words)
