"""What the parser of configurations says of a fault, in a line or two.

Its own message repeats every type that was tried and every value around the fault. Here the key is
named, what was given and expected, and the names that are nearest to a wrong one.
"""

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from textwrap import shorten
from typing import NamedTuple

NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value type: "
    r"|Subclass types expect one of|a class path \(str\)|a dict with|Expected a dot import path"
    r"|Expected a path but .* not accessible"
)
KEY = re.compile(r'Parser key "(.+?)":\s*(.*)')
CLASS = re.compile(r"Problem with given class_path '(.+?)':")
SUBCLASS = re.compile(r"Not a valid subclass of (\w+)(?:\. Got value: (.*))?")
EXPECTED = re.compile(r"Expected a <class '(.+?)'>(?:\. Got value: (.*))?")
GIVEN = re.compile(r"Given value: (.*)")
NESTED = re.compile(r"NestedArg\(key='.*', val=(.*)\)")
OPTION = re.compile(r"Option '(.+?)' is not accepted")
UNKNOWN = re.compile(r"does not accept option '(.+?)'|unrecognized arguments: --([^\s=]+)")
ATTRIBUTE = re.compile(r"module '(.+?)' has no attribute '(.+?)'")


class Complaint(NamedTuple):
    """What was found in a message.

    Attributes:
        where: Dotted key of the configuration.
        class_path: The innermost class that was to be built.
        types: Names of the types that were expected.
        given: The value that had none of them.
        rest: Everything else that says something.
    """

    where: str
    class_path: str
    types: list[str]
    given: str
    rest: list[str]


def explain(message: str, options: Iterable[str] = ()) -> str:
    """The parser's message in few words.

    Args:
        message: All that the parser says.
        options: Known keys, dotted.
    """
    found = read(message)
    said = [told(line, found.class_path, list(options)) for line in found.rest]
    if found.types and not said:
        said = [f"expected {' or '.join(found.types)}, got {found.given}"]
    text = "; ".join(said) or message.strip()
    return f"{found.where}: {text}" if found.where else text


def read(message: str) -> Complaint:
    """Takes a message apart."""
    keys: list[tuple[int, str]] = []
    rest: list[str] = []
    types: list[str] = []
    class_path = given = ""
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip())
        line = line.strip().removeprefix("- ")
        if match := KEY.search(line):
            keys = [key for key in keys if key[0] < indent] + [(indent, match[1])]
            line = match[2]
        if match := CLASS.search(line):
            class_path = match[1]
        elif match := EXPECTED.search(line):
            given = given or match[2] or ""
            if match[1] != "NoneType":  # every part of a configuration may be null
                types.append(match[1].rpartition(".")[2])
        elif match := SUBCLASS.match(line):
            given = given or match[2] or ""
            types.append(f"the class path of a {match[1]}")
        elif match := GIVEN.match(line):
            given = given or match[1]
        elif line and not NOISE.match(line):
            rest.append(line)
    given = given.partition(". Got value: ")[0]
    if match := NESTED.match(given):
        given = match[1]
    where = ".".join(name for _, name in keys)
    return Complaint(where, class_path, once(types), shorten(given, 200), once(rest))


def once(lines: list[str]) -> list[str]:
    """Without repetitions: every alternative type says the same again."""
    return list(dict.fromkeys(lines))


def told(line: str, class_path: str, options: list[str]) -> str:
    """One fault, with the nearest names."""
    if match := OPTION.search(line):
        taken = parameters(class_path)
        return (
            f"{class_path} takes no {match[1]!r}{nearest(match[1], taken)}"
            f"{'; it takes ' + ', '.join(taken) if taken else ''}"
        )
    if match := UNKNOWN.search(line):
        name = match[1] or match[2]
        return f"there is no option {name!r}{nearest(name, options)}"
    if match := ATTRIBUTE.search(line):
        public = [name for name in dir(import_module(match[1])) if not name.startswith("_")]
        return f"{match[1]} has no {match[2]!r}{nearest(match[2], public)}"
    return line


def nearest(name: str, known: Iterable[str]) -> str:
    """A question after similar names; nothing where there is none."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def parameters(class_path: str) -> list[str]:
    """What a class takes; the parser has imported it already."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def innermost(error: BaseException) -> BaseException:
    """What was raised while an object was built, without the parser's words around it."""
    while error.__cause__ is not None and str(error).startswith("Does not validate against"):
        error = error.__cause__
    if isinstance(error, ValueError | OSError):
        return error
    return ValueError(f"{type(error).__name__}: {error}")
