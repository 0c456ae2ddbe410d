"""Logits of held-out images at noise levels, asked once and kept in a file that says of what.

They are float32, 4 bytes for each level, row and class: 1.6 GB for 50,000 images, 8 levels and
1,000 classes, on the disk and in the memory of every process.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed, nn

from robustguide.checkpoints.digest import feed
from robustguide.checkpoints.export import write as write_tensors
from robustguide.checkpoints.portable import portable
from robustguide.data import Samples
from robustguide.data.batches import spread

KEY = "robustguide_logits"
PROBES = 16  # images of a split that stand for its content
CHUNK = 2**22  # logits that are computed with at a time, in float64

About = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """Rows in the order of image and draw.

    Attributes:
        logits: float32.
        y: Labels.
        index: Numbers of the images in their split.
        draw: Which of the noise draws of the image.
    """

    logits: Float[Tensor, "levels n k"]
    y: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    draw: Int[Tensor, " n"]

    def chunks(
        self, levels: Sequence[float]
    ) -> Iterator[tuple[Float[Tensor, "b k"], Int[Tensor, " b"], Float[Tensor, " b"]]]:
        """Logits, labels and levels (float64) of all rows at all levels, a few at a time."""
        count, n, classes = self.logits.shape
        flat, y = self.logits.flatten(0, 1), self.y.repeat(count)
        sigma = torch.tensor(levels, dtype=torch.float64).repeat_interleave(n)
        size = max(1, CHUNK // classes)
        for start in range(0, len(flat), size):
            rows = slice(start, start + size)
            yield flat[rows], y[rows], sigma[rows]


def joined(parts: Sequence[Kept]) -> Kept:
    """One of several, in order."""
    index, draw = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("index", "draw")
    )
    order = (index * (int(draw.max()) + 1) + draw).argsort()
    logits = torch.cat([part.logits for part in parts], dim=1)[:, order]
    return Kept(logits, torch.cat([part.y for part in parts])[order], index[order], draw[order])


def of_all_processes(mine: Kept) -> Kept:
    """The rows of all processes, in each of them; all of them must ask."""
    parts: list[Any] = [mine]
    if distributed.is_available() and distributed.is_initialized():
        parts *= distributed.get_world_size()
        distributed.all_gather_object(parts, mine)
    return joined(parts)


def write(path: Path, kept: Kept, about: About) -> None:
    """Writes the file; it is whole or not there.

    Raises:
        OSError: The file could not be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in vars(kept).items()}
    write_tensors(path, tensors, {KEY: json.dumps(about)})


def read(path: Path) -> Kept:
    """Reads the file, whose `differences` are none."""
    with safe_open(path, framework="pt") as file:
        return Kept(**{name: file.get_tensor(name) for name in file.keys()})


def differences(path: Path, about: About) -> list[str]:
    """What a file was made of otherwise; "all" for one that is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[KEY])
    except (SafetensorError, OSError, KeyError, ValueError):
        return ["all"]
    now = json.loads(json.dumps(about))
    return sorted(name for name in {**told, **now} if told.get(name) != now.get(name))


def hash_of_network(network: nn.Module | None, specification: Any) -> str | None:
    """SHA-256 of a network's tensors and of how it is built, as far as that is known.

    Args:
        network: Null has none.
        specification: From the configuration; of a network that was built in Python there is none.
    """
    if network is None:
        return None
    is_known = isinstance(specification, dict)
    built = json.dumps(portable(specification), sort_keys=True) if is_known else repr(network)
    digest = hashlib.sha256(built.encode())
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        feed(digest, name, tensor)
    return digest.hexdigest()


def hash_of_images(split: Samples) -> str:
    """SHA-256 of some images of a split and of their labels, evenly spread."""
    digest = hashlib.sha256()
    for place in spread(len(split), PROBES):
        x_0, y, _ = split[place]
        feed(digest, f"{place} {y}", x_0)
    return digest.hexdigest()


def refuse_infinite(logits: Tensor, levels: Sequence[float], index: Tensor) -> None:
    """Names the first place where a logit (levels, b, k) is not finite.

    Raises:
        FloatingPointError: When there is one.
    """
    wrong = (~logits.isfinite()).any(-1).nonzero()
    if len(wrong):
        level, row = wrong[0].tolist()
        raise FloatingPointError(
            f"The classifier's logits of held-out image {int(index[row])} at sigma "
            f"{levels[level]:g} are not finite; look at the image and at the classifier's "
            "weights, or leave out mixed precision."
        )
