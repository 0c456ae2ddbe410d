"""Writes trained modules to files that can be read without their training code.

One safetensors file holds the tensors of a module and, in its header, `Metadata`.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from robustguide.checkpoints.load import KINDS, outline
from robustguide.checkpoints.metadata import Metadata
from robustguide.checkpoints.mismatch import listed, mismatches, shapes_of
from robustguide.checkpoints.portable import portable, trust_stated
from robustguide.checkpoints.trust import LIBRARIES
from robustguide.files import open_to_others
from robustguide.interfaces import Classifier
from robustguide.specification import Specification, calls


def export(
    module: nn.Module,
    path: str | Path,
    specification: Specification,
    *,
    class_names: Sequence[str],
    shape: Sequence[int],
    weights: str,
    extra: dict[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> Metadata:
    """Writes a classifier, denoiser or codec so that it can be loaded without its training code.

    The file appears under its name only when it is complete.

    Args:
        module: A `Classifier`, `Denoiser` or `Codec`.
        path: Name of the file; folders are made.
        specification: How the module was built. Arguments that load weights are left out, and
            `load_classifier` and its like are replaced by what the loaded file says.
        class_names: One for each class; none of a codec.
        shape: Channels, height and width of the images.
        weights: "ema" or "raw".
        extra: Plain data to note in the metadata.
        trust: Packages of the user that the specification may name.

    Raises:
        ValueError: The specification does not build this module, or would be refused on loading.
        OSError: The file could not be written; nothing is left of it.
    """
    specification = verify(module, specification, trust)
    metadata = Metadata(
        path=str(path),
        kind=_kind(module),
        specification=specification,
        class_names=tuple(class_names),
        num_classes=_num_classes(module),
        shape=tuple(shape),
        conditioning=getattr(module, "conditioning", None),
        weights=weights,
        versions=_versions(specification),
        extra=extra or {},
    )
    _check_description(metadata, module)
    write(Path(path), _tensors(module), metadata.header())
    return metadata


def verify(
    module: nn.Module, specification: Specification, trust: Sequence[str] = ()
) -> Specification:
    """The specification that `export` would write; worth asking for before a long training run.

    Raises:
        ValueError: The specification does not build this module, or would be refused on loading.
    """
    _kind(module)
    trust = (*trust, *trust_stated(specification))
    specification = portable(specification)
    built = outline(specification, trust)
    if type(built) is not type(module):
        wrong = [f"it builds a {type(built).__name__}, not a {type(module).__name__}"]
    else:
        wrong = mismatches(shapes_of(built), shapes_of(module), ("specification", "module"))
    if wrong:
        raise ValueError(
            f"The specification does not describe the module: {listed(wrong)}. A checkpoint with "
            "it could not be loaded again; give the arguments that built the module."
        )
    return specification


def _kind(module: nn.Module) -> str:
    for name, kind in KINDS.items():
        if isinstance(module, kind):
            return name
    raise ValueError(
        f"A checkpoint holds a Classifier or a Denoiser or a Codec, got a "
        f"{type(module).__name__}; wrap it in one of robustguide.classifiers or "
        "robustguide.denoisers or robustguide.codecs."
    )


def _num_classes(module: nn.Module) -> int:
    count = getattr(module, "num_classes", 0)  # a codec knows none
    if not isinstance(count, int):
        raise ValueError(f"num_classes of {type(module).__name__} is {count!r}, not an integer.")
    return count


def _check_description(metadata: Metadata, module: nn.Module) -> None:
    """Holds what the caller says against what the module says."""
    if len(metadata.class_names) != metadata.num_classes:
        raise ValueError(
            f"{len(metadata.class_names)} class names were given for {metadata.num_classes} "
            "classes; give one for each."
        )
    shape = tuple(getattr(module, "shape", None) or metadata.shape)
    reads = isinstance(module, Classifier) and module.reads(metadata.shape)
    if len(metadata.shape) != 3 or not (reads or metadata.shape == shape):
        raise ValueError(
            f"shape is [channels, height, width] of the images that the {metadata.kind} was made "
            f"for, got {list(metadata.shape)}; it says {list(shape)} itself."
        )
    if metadata.weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {metadata.weights!r}.")


def _versions(specification: Specification) -> dict[str, str]:
    """Of this package, torch, and the libraries that the specification names."""
    roots = {found.class_path.partition(".")[0] for found in calls(specification)}
    names = {library: library for library in LIBRARIES if library in roots}
    if "open_clip" in names:
        names["open_clip"] = "open_clip_torch"
    found = {"torch": str(torch.__version__)}
    for package, distribution in {"robustguide": "robustguide", **names}.items():
        try:
            found[package] = version(distribution)
        except PackageNotFoundError:  # run from a source tree that was not installed
            found[package] = "unknown"
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state on the host; tied tensors are written once for each name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # The format holds no views: neither of one another nor of something larger.
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.itemsize:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Under another name first: a file that has its final name is complete and on the disk.

    Raises:
        OSError: The file could not be written; nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=header)
        open_to_others(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The checkpoint {path} could not be written: {error}. Nothing was left under that "
            "name; free space there, or give a path in another folder, and export again."
        ) from error
    finally:
        with suppress(OSError):  # a folder that could not be made
            partial.unlink(missing_ok=True)
