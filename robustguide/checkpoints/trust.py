"""Builds modules from specifications that came with a file, without trusting the file.

A class path is imported only if it lies under a package of `LIBRARIES` or one that the user
names, and only after all class paths of the specification have been judged. It is called only if
it is a module class or a listed builder that the same package defines, with plain data.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from robustguide.noise import Levels
from robustguide.specification import Call, Specification, at, calls, fold

LIBRARIES = ("torchvision", "timm", "diffusers", "open_clip")
BUILDERS = (
    "robustguide.noise.linear_levels",
    "robustguide.noise.cosine_levels",
    "robustguide.noise.scaled_linear_levels",
    "torchvision.models.get_model",
    "timm.create_model",
    "open_clip.create_model",
)

_trusted: ContextVar[tuple[str, ...]] = ContextVar("_trusted", default=())


class UntrustedError(ValueError):
    """A specification names something that a file may not name."""


@contextmanager
def trusting(packages: Iterable[str]) -> Iterator[None]:
    """Also trusts these packages, in the block and in everything that it calls."""
    token = _trusted.set((*_trusted.get(), *packages))
    try:
        yield
    finally:
        _trusted.reset(token)


def build(specification: Specification, trusted: Sequence[str] = ()) -> Any:
    """The object that a specification describes.

    Args:
        specification: A class path with its arguments, nested, as plain data.
        trusted: Packages of the user that may be imported too, beside those of `trusting`.

    Raises:
        UntrustedError: For a class path or an argument that a file may not give; nothing has been
            imported where a class path lies outside the trusted packages.
        ValueError: For data that is not plain, or arguments that do not fit.
    """
    packages = check(specification, trusted)
    targets = {
        found.class_path: _resolve(found, _home(found, packages)) for found in calls(specification)
    }

    def construct(found: Call) -> Any:
        target = targets[found.class_path]
        _check_name(found, target)
        try:
            return target(**found.arguments)
        except Exception as error:
            raise ValueError(
                f"{found.class_path}{at(found.where)} cannot be built from the arguments "
                f"{', '.join(found.arguments) or '(none)'}: {error}"
            ) from error

    return fold(specification, construct)


def check(specification: Any, trusted: Sequence[str] = ()) -> tuple[str, ...]:
    """Judges what came as a specification without importing anything; returns trusted packages.

    Raises:
        UntrustedError: For a class path outside them, or an argument that would load a file.
        ValueError: For data that is not plain.
    """
    packages = ("robustguide", *LIBRARIES, *trusted, *_trusted.get())
    if wrong := [package for package in packages if not _is_dotted(package)]:
        raise ValueError(f"Trusted packages are dotted names such as 'mynets', got {wrong[0]!r}.")
    found = list(calls(specification))
    if not found or found[0].where:
        raise ValueError("A specification is a dict with class_path and init_args.")
    for each in found:
        home = _home(each, packages)
        if home in ("robustguide", *LIBRARIES):
            _check_sources(each, home)
    return packages


def loads(name: str, value: Any) -> bool:
    """Whether an argument makes a builder fetch weights, from their usual names."""
    words = set(name.lower().split("_"))
    if not value:
        return False
    if name.startswith("weights") or words & {"pretrained", "hf", "hub"}:
        return True
    places = {"checkpoint", "weights", "path", "file", "dir", "url", "repo", "cache"}
    return isinstance(value, str) and bool(words & places)  # drop_path is a number


def _home(found: Call, packages: Sequence[str]) -> str:
    """The trusted package that a class path lies under; the widest, where several do."""
    homes = [package for package in packages if found.class_path.startswith(f"{package}.")]
    if homes and _is_dotted(found.class_path):
        return min(homes, key=len)
    root = found.class_path.partition(".")[0]
    repair = (
        f"If you have read the code of {root!r} and trust it, allow it with `--trust {root}`"
        if not homes and root.isidentifier()
        else "Name a public class by its full path, such as robustguide.classifiers.Timed"
    )
    raise UntrustedError(
        f"Class path {found.class_path!r}{at(found.where)} was refused and not imported; "
        f"allowed are dotted names under {', '.join(packages)}. {repair}."
    )


def _is_dotted(name: str) -> bool:
    """Public identifiers with dots between them, so that no way leads through `__globals__`."""
    return all(part.isidentifier() and not part.startswith("_") for part in name.split("."))


def _check_sources(found: Call, home: str) -> None:
    """Refuses arguments by which a builder would load other files or use the network."""
    for name, value in _plain_arguments(found.arguments):
        # No architecture of these libraries has such signs in a name: it is a hub or a folder.
        is_address = home in LIBRARIES and isinstance(value, str) and re.search(r"[:/\\~]", value)
        if loads(name, value) or is_address:
            raise UntrustedError(
                f"{found.class_path}{at(found.where)} was given {name}={value!r}, which would "
                "load other files; a checkpoint holds the weights itself, so leave it out."
            )


def _plain_arguments(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arguments by name, also inside lists and dicts, but not those of nested class paths."""
    if isinstance(value, dict) and "class_path" not in value:
        for key, part in value.items():
            yield key, part
            yield from _plain_arguments(part, key)
    elif isinstance(value, list):
        for part in value:
            yield name, part
            yield from _plain_arguments(part, name)


def _resolve(found: Call, home: str) -> Callable[..., Any]:
    """Imports a judged class path, and makes sure that its package defines what it names."""
    parent, _, name = found.class_path.rpartition(".")
    try:
        # Only modules are walked: `torchvision.os` is an attribute, and no way out.
        module = importlib.import_module(parent)
        target = getattr(module, name)
    except Exception as error:
        raise ValueError(
            f"Class path {found.class_path!r}{at(found.where)} cannot be imported: {error}. "
            f"Install {home!r}, in a version that has it."
        ) from error
    defined_in = f"{getattr(target, '__module__', '')}."
    is_class = isinstance(target, type) and issubclass(target, nn.Module | Levels)
    if not defined_in.startswith(f"{home}.") or not (is_class or _is_builder(target)):
        raise UntrustedError(
            f"Class path {found.class_path!r}{at(found.where)} was refused and not called; a file "
            f"may name subclasses of torch.nn.Module that {home!r} itself defines, the "
            f"classifiers torchvision.models.<name>, and {', '.join(BUILDERS)}. Wrap it in such "
            "a class."
        )
    called: Callable[..., Any] = target
    return called


def _is_builder(target: Any) -> bool:
    """Whether a function is one of the listed builders, under whatever name it is exported."""
    root = str(target.__module__).partition(".")[0]
    if root == "torchvision" and _is_torchvision_classifier(getattr(target, "__name__", "")):
        models = importlib.import_module("torchvision.models")
        if getattr(models, target.__name__, None) is target:
            return True
    paths = [path.rpartition(".") for path in BUILDERS if path.startswith(f"{root}.")]
    return any(
        getattr(importlib.import_module(parent), name, None) is target for parent, _, name in paths
    )


def _is_torchvision_classifier(name: str) -> bool:
    """Not the detectors, whose backbones load weights unless told not to."""
    models = importlib.import_module("torchvision.models")
    return name in models.list_models(module=models)


def _check_name(found: Call, target: Callable[..., Any]) -> None:
    """Refuses names of architectures that would bring weights from elsewhere with them."""
    match str(target.__module__).partition(".")[0], getattr(target, "__name__", ""):
        case "torchvision", "get_model":
            name = str(found.arguments.get("name"))
            if not _is_torchvision_classifier(name):
                raise UntrustedError(
                    f"{found.class_path}{at(found.where)} was given name={name!r}; give one of "
                    "torchvision.models.list_models(module=torchvision.models)."
                )
        case "open_clip", "create_model":
            # The text towers of some come from a hub.
            library = importlib.import_module("open_clip")
            described = library.get_model_config(str(found.arguments.get("model_name")))
            _check_sources(found._replace(arguments={"architecture": described}), "open_clip")
