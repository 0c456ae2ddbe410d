"""How a module is built, as plain data in the form of the configuration files.

    {"class_path": "robustguide.classifiers.Timed", "init_args": {"net": {...}, "num_classes": 10}}

Class paths nest in arguments, lists and dicts. `dict_kwargs`, which the command line's parser
writes for the open arguments of a function, are arguments like others.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Specification = dict[str, Any]
CALL_KEYS = {"class_path", "init_args", "dict_kwargs"}


class Call(NamedTuple):
    """One class path of a specification.

    Attributes:
        where: Dotted way to it from the top, empty for the top itself.
        class_path: Dotted name of a class or function.
        arguments: What it is called with; nested specifications are still data.
    """

    where: str
    class_path: str
    arguments: dict[str, Any]


def call(value: Any, where: str = "") -> Call | None:
    """Reads a dict with a class path; null for any other data.

    Raises:
        ValueError: For a dict that mixes a class path with other keys.
    """
    if not isinstance(value, dict) or "class_path" not in value:
        return None
    class_path = value["class_path"]
    parts = [value.get("init_args") or {}, value.get("dict_kwargs") or {}]
    if not isinstance(class_path, str) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"The specification{at(where)} needs a class_path that is a string, and init_args by "
            f"name; got class_path {class_path!r}."
        )
    if unknown := sorted(map(str, set(value) - CALL_KEYS)):
        raise ValueError(
            f"The specification of {class_path!r}{at(where)} holds {', '.join(unknown)} beside "
            "its class path; arguments go under init_args."
        )
    return Call(where, class_path, {**parts[0], **parts[1]})


def calls(value: Any, where: str = "") -> Iterator[Call]:
    """All class paths in a specification, from the top down.

    Raises:
        ValueError: For a value that is no plain data.
    """
    found = call(value, where)
    if found is not None:
        yield found
        value = found.arguments
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise ValueError(
                    f"The specification{at(where)} has the key {name!r}; keys are strings."
                )
            yield from calls(part, join(where, name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from calls(part, join(where, str(index)))
    elif not isinstance(value, None | bool | int | float | str):
        raise ValueError(
            f"The specification{at(where)} holds a {type(value).__name__}; only null, numbers, "
            "strings, lists and dicts of them can be written to a file."
        )


def fold(value: Any, make: Callable[[Call], Any], where: str = "") -> Any:
    """Replaces every class path by what `make` returns for it, the innermost first."""
    found = call(value, where)
    if found is not None:
        return make(found._replace(arguments=fold(found.arguments, make, where)))
    if isinstance(value, dict):
        return {name: fold(part, make, join(where, name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [fold(part, make, join(where, str(index))) for index, part in enumerate(value)]
    return value


def differences(file: Specification, given: Specification) -> list[str]:
    """Fields in which two specifications differ; those that only one of them states come last."""
    ours, theirs = fields(file), fields(given)
    absent = "(its default)"
    names = [
        name for name in {**ours, **theirs} if ours.get(name, absent) != theirs.get(name, absent)
    ]
    names.sort(key=lambda name: not (name in ours and name in theirs))
    return [
        f"{name}: file {ours.get(name, absent)}, given {theirs.get(name, absent)}"
        for name in names
    ]


def fields(value: Any, where: str = "") -> dict[str, Any]:
    """Leaves of a specification by their dotted ways; the way to a module holds its class path."""
    found = call(value, where)
    if found is not None:
        head = {where or "class_path": found.class_path}
        return head | fields(found.arguments, where) if found.arguments else head
    if isinstance(value, dict) and value:
        leaves: dict[str, Any] = {}
        for name, part in value.items():
            leaves |= fields(part, join(where, name))
        return leaves
    return {where: list(value) if isinstance(value, tuple) else value}


def join(where: str, name: str) -> str:
    """The way to a part."""
    return f"{where}.{name}" if where else name


def at(where: str) -> str:
    """Names a place in a message."""
    return f" at {where!r}" if where else ""
