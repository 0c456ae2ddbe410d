"""Arguments that name a class, whose help does not wait for torch."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace


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


def data_words(files: Sequence[str]) -> list[str]:
    """What configurations say of data, as one word of the command line each.

    Raises:
        FileNotFoundError: No such file.
    """
    documents = [yaml.safe_load(Path(file).read_text()) or {} for file in files]
    return [f"--data={json.dumps(each['data'])}" for each in documents if "data" in each]


def plain(part: Any) -> Any:
    """What the parser read, as plain data."""
    return json.loads(json.dumps(part.as_dict())) if isinstance(part, Namespace) else part
