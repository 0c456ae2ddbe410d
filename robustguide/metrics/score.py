"""A score: numbers of one set of images, with all that must agree before two are compared."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from robustguide.files import whole
from robustguide.metrics.extractor import Identity

FORMAT = "robustguide.score.1"


@dataclass(frozen=True)
class Entry:
    """One number.

    Attributes:
        value: The number; the mean, where there are several blocks of seeds.
        shown: With n and protocol, such as "FID-2k@adm".
        n: Images behind it; in each block, where there are several.
        lower_is_better: Which way is good.
        interval: 95% limits of the number at this n; null where not known.
        replicates: The number without each group of images, for paired comparisons.
        blocks: The number in each block of seeds; one for a single block.
        infinity: Extrapolation to endless images: value, standard error, slope; null if not made.
        facts: What else defines it.
    """

    value: float
    shown: str
    n: int
    lower_is_better: bool
    interval: tuple[float, float] | None = None
    replicates: tuple[float, ...] = ()
    blocks: tuple[float, ...] = ()
    infinity: Mapping[str, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """See the module.

    Attributes:
        protocol: Its name.
        identity: Of the network that made the features.
        n: Images in each block.
        entries: By key, such as "fid/adm".
        samples: What the images are: path, kind, method, scale, checkpoints.
        seeds: Digest of their seeds, by which scores are paired.
        reference: Digest and provenance of the real images; null where none is needed.
        warnings: What a reader must know.
    """

    protocol: str
    identity: Identity
    n: int
    entries: Mapping[str, Entry]
    samples: Mapping[str, Any]
    seeds: str
    reference: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, under its final name only once it is whole."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)
        with whole(path) as part:
            part.write_text(text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Score":
        """Reads what `save` wrote; a folder holds it as `score.json`.

        Raises:
            FileNotFoundError: No such file.
            ValueError: If the file holds something else.
        """
        file = Path(path) / "score.json" if Path(path).is_dir() else Path(path)
        expected = f"expected a score that `robustguide score --out` wrote ({FORMAT})"
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist (from {Path.cwd()}); {expected}.")
        try:
            told = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is no such JSON ({error}); {expected}.") from error
        form = told.pop("format", None)
        if form != FORMAT:
            raise ValueError(f"{file} has format {form!r}; {expected}.")
        entries = {key: _entry(each) for key, each in told.pop("entries").items()}
        identity = Identity(**told.pop("identity"))
        return cls(identity=identity, entries=entries, **told)


def _entry(told: dict[str, Any]) -> Entry:
    for name in ("replicates", "blocks", "interval"):
        told[name] = None if told[name] is None else tuple(told[name])
    return Entry(**told)


def digest_of_seeds(seeds: Int[Tensor, " n"]) -> str:
    """Equal for equal sets of seeds, whatever their order."""
    ordered = torch.sort(seeds.long().cpu()).values
    return hashlib.sha256(ordered.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def difference_of_protocols(a: Score, b: Score, names: tuple[str, str]) -> str | None:
    """Why two scores are not comparable; null when they are."""
    sides = [
        ("protocol", a.protocol, b.protocol),
        ("number of images", a.n, b.n),
        ("reference", _told(a.reference), _told(b.reference)),
    ]
    if not a.identity.agrees(b.identity):
        sides.append(("extractor", str(a.identity), str(b.identity)))
    for what, first, second in sides:
        if first != second:
            return f"{names[0]} has {what} {first}, {names[1]} has {second}"
    return None


def _told(reference: Mapping[str, Any] | None) -> str:
    return "none" if reference is None else f"{reference['data']} ({reference['digest']})"


def finite(value: float, what: str) -> float:
    """The number.

    Raises:
        FloatingPointError: When it is none.
    """
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{what} is {value}: the features or the reference are not finite; look at the images "
            "that the samples hold, and at the reference."
        )
    return value
