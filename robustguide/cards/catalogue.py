"""Cards of the published checkpoints: what each file is, and how it is read.

`cards.yaml` is data. A card names the file, the class and arguments that read it, how its tensors
are called there, and what its authors report of it. An entry with `variants` gives a card for each
of several files of one network, `{variant}` in its texts replaced, and one without a variant for
files of that network that are not listed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from robustguide.complaints import nearest
from robustguide.specification import Specification, fields

SHIPPED = Path(__file__).parents[1] / "networks"
CACHE = "~/.cache/robustguide/checkpoints"


@dataclass(frozen=True)
class Card:
    """A published checkpoint.

    Attributes:
        name: By which commands and configurations know it.
        title: What it is, in a line.
        kind: "denoiser", "classifier" or "codec".
        file: Name that its authors gave the file; `*` stands for a number that they leave open.
        licence: SPDX identifier, or what is known of the terms.
        source: Where the card's facts come from.
        specification: How the module that reads it is built.
        keys: Beginnings of the names of its tensors there, and what they are called here; or the
            class path of a function that translates all tensors.
        drop: Beginnings of names that are left out.
        part: Part of the file that holds the network, where it holds several.
        parameters: Number of trainable numbers; null where not known.
        shape: Channels, height and width of what it reads.
        classes: Set of classes, such as "imagenet"; null for a network that knows none.
        conventions: What its numbers mean: prediction, variance, labels, null, latents.
        result: What its authors report.
        url: Where it is published; null where there is no address of the file itself.
        bytes: Size, where published.
        sha256: Hash, or its published beginning.
        weights: "ema" or "raw".
    """

    name: str
    title: str
    kind: str
    file: str
    licence: str
    source: str
    specification: Specification
    keys: dict[str, str] | str
    shape: tuple[int, ...]
    parameters: int | None = None
    classes: str | None = None
    drop: tuple[str, ...] = ()
    part: str | None = None
    conventions: dict[str, Any] = field(default_factory=dict)
    result: str | None = None
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    weights: str = "ema"

    @property
    def num_classes(self) -> int:
        """Number of classes of the network."""
        count = fields(self.specification).get("num_classes", 0)
        assert isinstance(count, int)
        return count

    @property
    def converted(self) -> str:
        """Name of the file that `robustguide convert` writes."""
        return f"{self.name}.safetensors"


@cache
def cards() -> dict[str, Card]:
    """All cards by name, in the order of the file."""
    text = files("robustguide.cards").joinpath("cards.yaml").read_text()
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {
        card.name: card for name, entry in found["cards"].items() for card in read(name, entry)
    }


def read(name: str, entry: dict[str, Any]) -> Iterator[Card]:
    """The card of an entry, and one for each of its variants."""
    entry = dict(entry)
    variants = entry.pop("variants", None)
    if variants is None:
        yield make(name, entry)
        return
    yield make(name, _filled({**entry, "url": None}, "[0-9]*"))  # not the `-uncond` of others
    for variant, changes in variants.items():
        yield make(f"{name}-{variant}", _filled({**entry, **(changes or {})}, variant))


def make(name: str, entry: dict[str, Any]) -> Card:
    """A card from plain data."""
    lists: dict[str, Any] = {k: tuple(entry[k]) for k in ("shape", "drop") if k in entry}
    return Card(name=name, **entry | lists)


def _filled(value: Any, variant: str) -> Any:
    """Replaces the variant's placeholder in the texts of an entry."""
    if isinstance(value, str):
        return value.replace("{variant}", variant)
    if isinstance(value, dict):
        return {key: _filled(part, variant) for key, part in value.items()}
    return value


def card(name: str) -> Card:
    """The card of a name.

    Raises:
        ValueError: For an unknown name; tells those that are like it.
    """
    known = cards()
    if name in known:
        return known[name]
    raise ValueError(
        f"There is no card {name!r}{nearest(name, known)}; `robustguide cards` lists all."
    )


def card_of_file(path: str | Path) -> Card | None:
    """The only card whose file has this name, exact names first; null for none or several."""
    name = Path(path).name
    exact = [each for each in cards().values() if each.file == name]
    found = exact or [each for each in cards().values() if fnmatch(name, each.file)]
    return found[0] if len(found) == 1 else None


def folder() -> Path:
    """Where checkpoints are kept: `$ROBUSTGUIDE_CHECKPOINTS`, or below the user's cache."""
    return Path(os.environ.get("ROBUSTGUIDE_CHECKPOINTS") or CACHE).expanduser()


def present(of: Card, where: Path | None = None) -> Path | None:
    """The file of a card: converted in a folder, as published there, or shipped with the package.

    Null where none of these is there.
    """
    where = where or folder()
    published = sorted(where.glob(of.file))
    places = [where / of.converted, *published, SHIPPED / of.converted]
    return next((place for place in places if place.is_file()), None)


def needed(of: Card) -> Path:
    """The file of a card.

    Raises:
        FileNotFoundError: It is not there; tells how to get it.
    """
    found = present(of)
    if found is not None:
        return found
    get = f"`robustguide fetch {of.name}` downloads it" if of.url else f"it comes from {of.source}"
    raise FileNotFoundError(
        f"The checkpoint of card {of.name!r}, {of.file}, is not in {folder()}; {get}. Put it "
        "there, set ROBUSTGUIDE_CHECKPOINTS to the folder that has it, or give its `path`."
    )
