"""Opens the files in which others publish weights, and runs nothing of them.

What a file is tells its content, not its name: safetensors, torch's zip archive or older stream,
or a bare pickle such as a snapshot of EDM and EDM2. Pickles are read as data by `pickles` before
anything else looks at them; what torch can then load with `weights_only=True` it loads, and the
rest is built here.
"""

import mmap
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robustguide.checkpoints.archives import (
    MAGIC,
    members_of,
    read_archive,
    read_pickle,
    read_stream,
)
from robustguide.checkpoints.claims import DAMAGED, RESAVE, Claim, RefusedError
from robustguide.checkpoints.parts import Findings
from robustguide.checkpoints.pickles import HOSTILE

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip

MOST_SHARED = 8
PIECE = 2**22  # elements that are looked at together


@dataclass(frozen=True)
class Contents:
    """Tensors of a file by name, and whatever plain data it recorded beside them.

    Attributes:
        path: The file.
        tensors: By the names of the file, in its order; those of one storage share memory, and
            most are maps of the file.
        recorded: Numbers, texts, lists and dicts. Of an object with a class of its own
            `class_name`, `init_args`, `init_kwargs` and `attributes`, under its name in the file.
    """

    path: str
    tensors: dict[str, Tensor]
    recorded: dict[str, Any]


def open_tensors(
    path: str | Path, part: str | None = None, *, allow_nan: bool = False
) -> Contents:
    """The tensors of any file of weights; no code of it runs.

    Args:
        path: A file of safetensors, of torch.save, or a pickle such as EDM's.
        part: Which of the networks at the top of the file, such as "ema" or "state_dict"; may be
            left out where there is only one.
        allow_nan: Takes weights that are infinite or no numbers.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is no such file, holds what weights do not need, is damaged, or has no such
            part. Names the file, the reason and the repair.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist (from {Path.cwd()}).")
    try:
        tensors, recorded = _opened(file, part)
        for name, tensor in tensors.items():
            _check(name, tensor, allow_nan)
        _check_sum(tensors, file.stat().st_size)
    except RefusedError as error:
        raise ValueError(f"{path} was not opened: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}. Mend its permissions.") from error
    return Contents(str(path), tensors, recorded)


def _opened(file: Path, part: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file as what it is by its first bytes."""
    if file.is_dir():
        names = ", ".join(sorted(each.name for each in file.iterdir())[:8])
        raise RefusedError("it is a folder", f"Give a file in it; it holds {names or 'none'}")
    size = file.stat().st_size
    if size == 0:
        raise RefusedError("it is empty", "Download or copy it again")
    with open(file, "rb") as stream:
        # Private and writable, as torch wants it; the file stays as it is.
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
    start = bytes(content[:512])
    if start[4:9] == b"\0\0\0\0{":  # a length, and JSON
        return _safetensors(file, part)
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        members = members_of(content)
        found = read_archive(content, members)
        storages = [place for name, place in members.items() if "/data/" in name]
        is_aligned = all(place.offset % 8 == 0 for place in storages)
        return _selected(found, part, file, is_mapped=is_aligned)
    if start[:1] == b"\x80":
        if start[2:14] == bytes([0x8A, 10]) + MAGIC.to_bytes(10, "little"):
            return _selected(read_stream(content), part, file)
        return _selected(read_pickle(content), part)
    raise _impostor(start)


def _selected(
    found: Any, part: str | None, torch_file: Path | None = None, is_mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a part, and what the file says beside them."""
    findings = Findings(found)
    name, claims = findings.name_of(part), findings.chosen(part)
    recorded = findings.recorded()
    loaded = None if torch_file is None else _by_torch(torch_file, is_mapped)
    if loaded is None:
        return {key: claim.tensor() for key, claim in claims.items()}, recorded
    whole = loaded if name is None or not isinstance(loaded, dict) else loaded.get(name)
    tensors: dict[str, Any] = {key: whole.get(key) for key in claims if isinstance(whole, dict)}
    if not all(_is_like(tensors.get(key), claim) for key, claim in claims.items()):
        raise RefusedError("torch reads other tensors in it than are described", HOSTILE)
    return {key: tensor.detach() for key, tensor in tensors.items()}, recorded


def _is_like(tensor: Any, claim: Claim) -> bool:
    """Whether torch has read the same; a file may be made so that two readers differ."""
    is_tensor = isinstance(tensor, Tensor)
    return is_tensor and (tensor.shape, tensor.dtype) == (claim.shape, claim.storage.dtype)


def _by_torch(file: Path, is_mapped: bool) -> Any:
    """What torch loads, which is tensors and containers; none if the file holds other records.

    Raises:
        RefusedError: Torch finds the file damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols other than 2
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped or None)
    except pickle.UnpicklingError:
        return None
    except Exception as error:  # it has none of its own
        reason = str(error).partition("\n")[0][:200]
        raise RefusedError(f"torch cannot read it, {reason}", DAMAGED) from error


def _safetensors(file: Path, part: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Maps the tensors; their bytes are read when they are used."""
    if part is not None:
        raise RefusedError(f"it has no part {part!r}", "Leave the part out: it holds one network")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise RefusedError(f"its safetensors cannot be read, {error}", DAMAGED) from error


def _check(name: str, tensor: Tensor, allow_nan: bool) -> None:
    """Refuses what no network here can take."""
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        kind = tensor.layout if tensor.layout != torch.strided else tensor.dtype
        raise RefusedError(f"its tensor {name!r} is {kind}", RESAVE)
    if allow_nan or not tensor.is_floating_point():
        return
    flat = tensor.flatten()  # in pieces, because the comparison makes copies
    pieces = (flat[start : start + PIECE] for start in range(0, len(flat), PIECE))
    if not all(bool(piece.isfinite().all()) for piece in pieces):
        raise RefusedError(f"its tensor {name!r} holds values that are infinite or no numbers")


def _check_sum(tensors: dict[str, Tensor], size: int) -> None:
    """Tensors may share their numbers, as tied weights do, but not to fill the memory."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > MOST_SHARED * size:
        raise RefusedError(
            f"its tensors would fill {total} bytes, more than {MOST_SHARED} times the file",
            HOSTILE,
        )


def _impostor(start: bytes) -> RefusedError:
    """Tells the usual ones apart by their first bytes."""
    again = "Download the file itself again"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return RefusedError("it is a web page", again)
    if start.startswith(b"version https://git-lfs"):
        return RefusedError("it is the pointer of a file in Git LFS", "Run `git lfs pull`")
    if start[:2] == b"\x1f\x8b":
        return RefusedError("it is compressed with gzip", "Unpack it with gunzip")
    if start[257:262] == b"ustar":
        return RefusedError("it is a tar archive", "Unpack it, and give the file of weights in it")
    if start[:6] == b"\x93NUMPY":
        return RefusedError("it is a numpy array", "Give a file of weights")
    if start.isascii() and b"\0" not in start:
        return RefusedError(f"it is text, which begins {start[:40].decode()!r}", again)
    return RefusedError(
        "it is neither safetensors, nor written by torch.save, nor a pickle of protocol 2 or "
        "later",
        DAMAGED,
    )
