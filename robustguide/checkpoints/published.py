"""Published results: which run, by which protocol, at which number of images.

`published.yaml` is data. A number keeps the digits that its source prints, since they say how
exactly it is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from robustguide.cards import folder
from robustguide.complaints import nearest
from robustguide.metrics.verdict import Printed


@dataclass(frozen=True)
class Preset:
    """A published result.

    Attributes:
        name: By which `robustguide reproduce` knows it.
        configs: Files that `robustguide predict` reads, in order.
        protocol: By which it was measured; perhaps not one of ours.
        numbers: By name, as printed.
        source: Publication and table.
        cards: Of the checkpoints that it runs.
        reference: File of the real images' statistics; null takes the real images that the
            configuration names as `data.reference`.
        changes: Options after the files.
        images: Number of images that were measured.
        runs: Whose best was reported.
        weights: Of the protocol's network; null is its own default.
        note: What else to know.
    """

    name: str
    configs: tuple[str, ...]
    protocol: str
    numbers: Mapping[str, str]
    source: str
    cards: tuple[str, ...] = ()
    reference: str | None = None
    changes: tuple[str, ...] = ()
    images: int = 50_000
    runs: int = 1
    weights: str | None = None
    note: str | None = None

    @property
    def printed(self) -> dict[str, Printed]:
        """The numbers with what stands behind them, by name."""
        return {name: Printed(text, self.images, self.runs) for name, text in self.numbers.items()}


@dataclass(frozen=True)
class Need:
    """A file that a preset needs.

    Attributes:
        what: For whom it is.
        path: Where it is looked for.
        there: Whether it is.
        repair: How to get it.
    """

    what: str
    path: str
    there: bool
    repair: str


@cache
def document() -> dict[str, Any]:
    """The file."""
    text = files("robustguide.checkpoints").joinpath("published.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@cache
def presets() -> dict[str, Preset]:
    """All of them by name, in the order of the file."""
    return {name: read(name, entry) for name, entry in document()["presets"].items()}


def read(name: str, entry: Mapping[str, Any]) -> Preset:
    """A preset from plain data.

    Raises:
        ValueError: For an entry that is none.
    """
    lists = {key: tuple(entry.get(key, ())) for key in ("configs", "changes", "cards")}
    odd = [key for key, text in (entry.get("numbers") or {}).items() if not _is_printed(text)]
    if odd or not entry.get("numbers"):
        raise ValueError(
            f"The preset {name!r} needs `numbers`, each as a text in quotes with the digits that "
            f'were printed, such as fid: "2.97"; got {entry.get("numbers")}.'
        )
    try:
        return Preset(name=name, **{**entry, **lists})
    except TypeError as error:
        raise ValueError(
            f"The preset {name!r} is not understood ({error}); it has configs, protocol, numbers "
            "and source, and perhaps reference, changes, images, runs, weights and note."
        ) from error


def _is_printed(text: object) -> bool:
    return isinstance(text, str) and text.replace(".", "", 1).isdigit()


def preset(name: str) -> Preset:
    """The preset of a name; that of a configuration's file is one, too.

    Raises:
        ValueError: For an unknown name; tells those that are like it.
    """
    wanted = name.replace("_", "-")
    if wanted in presets():
        return presets()[wanted]
    raise ValueError(
        f"There is no preset {name!r}{nearest(wanted, presets())}; `robustguide reproduce --list` "
        "lists all, and a YAML of your own may be given."
    )


def results_of(card: str) -> dict[str, str]:
    """Published numbers of a checkpoint, by preset."""
    found = {}
    for each in presets().values():
        if card in each.cards:
            numbers = [f"{name} {text}" for name, text in each.numbers.items()]
            what = f"{', '.join(numbers)} by {each.protocol}, {each.images} images"
            found[each.name] = f"{what} ({each.source})"
    return found


def address(reference: str) -> str:
    """Where a reference's file is published, in words."""
    url = document()["references"].get(reference)
    return f"fetch {url} into {folder()}" if url else f"put it into {folder()}"
