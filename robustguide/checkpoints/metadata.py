"""What a checkpoint says about itself, read without its tensors.

The header of a safetensors file holds strings by name; the string "robustguide" is a JSON
document with the fields of `Metadata` and the number of its format.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robustguide.specification import Specification

KEY = "robustguide"
FORMAT = 1
REPAIR = "`robustguide fit --config configs/fit/...` trains a network and exports such a file"


@dataclass(frozen=True)
class Metadata:
    """A checkpoint, described.

    Attributes:
        path: File that it was read from.
        kind: "classifier", "denoiser" or "codec".
        specification: How the module is built.
        class_names: Names in the order of the labels; none for a network that knows no classes.
        num_classes: Number of classes.
        shape: Channels, height and width of the images.
        conditioning: What tells the network the noise level: "t", "sigma" or "none"; null where
            the module does not say.
        weights: "ema" for an exponential moving average, "raw" for the last step's.
        versions: Versions of the packages that wrote it.
        extra: Whatever else the writer noted, as plain data.
    """

    path: str
    kind: str
    specification: Specification
    class_names: tuple[str, ...]
    num_classes: int
    shape: tuple[int, ...]
    conditioning: str | None
    weights: str
    versions: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, str]:
        """The metadata of the safetensors file.

        Raises:
            ValueError: For something that is no plain data.
        """
        document = {"format": FORMAT, **asdict(self)}
        del document["path"]
        try:
            return {KEY: json.dumps(document)}
        except TypeError as error:
            raise ValueError(
                f"The description of a checkpoint is plain data, but {error}; give numbers, "
                "strings, lists and dicts."
            ) from error


def read_metadata(path: str | Path) -> Metadata:
    """Describes a checkpoint; neither tensors are read nor anything imported.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of this package, or of a newer version of it.
    """
    with opened(path) as file:
        text = (file.metadata() or {}).get(KEY)
    if text is None:
        raise ValueError(
            f"{path} holds tensors, but does not say what network they belong to; build the "
            f"network in a configuration and fill it with load_weights. {REPAIR}."
        )
    try:
        document = json.loads(text)
        found = document["format"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"The metadata of {path} cannot be read: {error}. {REPAIR}.") from error
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, this version reads format {FORMAT}; install the version "
            f"of robustguide that wrote it: {document.get('versions')}."
        )
    return _parsed(document, str(path))


def _parsed(document: dict[str, Any], path: str) -> Metadata:
    """Checks the types of all fields."""
    text_or_null = str | None
    types: dict[str, Any] = {
        "kind": str, "specification": dict, "class_names": list, "num_classes": int, "shape": list,
        "conditioning": text_or_null, "weights": str, "versions": dict, "extra": dict,
    }  # fmt: skip
    wrong = [name for name, kind in types.items() if not isinstance(document.get(name), kind)]
    if wrong:
        raise ValueError(
            f"The metadata of {path} lacks {', '.join(wrong)}, or holds something else there. "
            f"{REPAIR}."
        )
    values = {name: document[name] for name in types}
    values |= {name: tuple(values[name]) for name in ("class_names", "shape")}
    return Metadata(path=path, **values)


def sha256_of(path: str | Path) -> str:
    """Hash of a whole file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as one of that format, with the length of a JSON header."""
    file = Path(path)
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= file.stat().st_size - 8


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file, open for reading.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a complete safetensors file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(_missing(file))
    try:
        handle = safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: {_diagnosis(file, error)}"
        ) from error
    with handle:
        yield handle


def _missing(file: Path) -> str:
    """What is there instead of the file that was asked for."""
    folder = file if file.is_dir() else file.parent
    others = sorted(each.name for each in folder.glob("*.safetensors"))[:10]
    what = "is a folder" if file.is_dir() else "does not exist"
    there = (
        f"{folder} holds {', '.join(others)}" if others else f"{folder} holds no .safetensors file"
    )
    return f"The checkpoint {file} {what} (from {Path.cwd()}); {there}. {REPAIR}."


def _diagnosis(file: Path, error: Exception) -> str:
    """Tells the usual impostors apart by their first bytes."""
    with open(file, "rb") as stream:
        start = stream.read(512)
    if (
        start[:4] == b"PK\x03\x04"
        or start[:1] == b"\x80"
        or file.suffix in {".ckpt", ".pt", ".pth"}
    ):
        return (
            "it is a pickled or trainer checkpoint, and no card has exactly one file of its name; "
            "name the card of a published file (`robustguide cards` lists them), or give the "
            ".safetensors file that the run exported."
        )
    if start.lstrip()[:1] == b"<":
        return "it is a web page; download the file itself again."
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer of a file in Git LFS; run `git lfs pull`."
    return (
        f"{error}; it has {file.stat().st_size} bytes and is damaged, incomplete or of another "
        "kind, so copy or download it again."
    )
