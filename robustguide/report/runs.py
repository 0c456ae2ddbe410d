"""Runs as their folders tell of them: clean data, whatever the files were.

`robustguide.report.reading` makes them; what was cut or of another form is a note by then.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from robustguide.metrics import Reliability
from robustguide.report import figures

UNGUIDED = "unguided"
SPLITS = {"fit": "validation", "validate": "validation"}


@dataclass(frozen=True)
class Number:
    """A metric of a run.

    Attributes:
        name: Its key, such as "frechet/digits_features".
        value: Null where it could not be measured.
        interval: Its 95% limits, where they are known.
        n: How many images or rows it is of.
        shown: Its name with protocol and n, where it has one, such as "FD-1k@digits_features".
        definition: All that decides what is measured, as text by key; numbers of two runs compare
            where these and n agree.
        lower_is_better: Where that is known.
        warning: Of the run itself.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    n: int | None = None
    shown: str = ""
    definition: tuple[tuple[str, str], ...] = ()
    lower_is_better: bool | None = None
    warning: str = ""

    @property
    def identity(self) -> tuple[Any, ...]:
        """What two numbers have in common that may stand in one column."""
        return self.name, self.shown, self.n, self.definition


@dataclass(frozen=True)
class Curve:
    """Quantities by noise level.

    Attributes:
        sigma: The levels.
        series: Values by name, as many; NaN where nothing was measured.
    """

    sigma: tuple[float, ...]
    series: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Samples:
    """Images of a generation.

    Attributes:
        pixels: Bytes.
        pairs: Number (the seed) and label of each.
    """

    pixels: UInt8[Tensor, "n c h w"]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Frames:
    """Images at some steps of sampling, as `robustguide.callbacks.Frames` keeps them.

    Attributes:
        tensors: By the names that its file has.
        pairs: Number (the seed) and label of each image.
    """

    tensors: Mapping[str, Tensor]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Bins:
    """The table of reliability diagrams."""

    sigma: tuple[float, ...]
    reliability: Reliability


@dataclass(frozen=True)
class Term:
    """A term of guidance.

    Attributes:
        name: Its key in the configuration.
        kind: Class of the innermost term.
        scale: What multiplies it; as text where it is a list, null where it has none.
    """

    name: str
    kind: str
    scale: float | str | None

    def __str__(self) -> str:
        if self.scale is None:
            return f"{self.name} ({self.kind})"
        scale = self.scale if isinstance(self.scale, str) else f"{self.scale:g}"
        return f"{self.name} ({self.kind}) scale {scale}"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: Its folder's, with as much of the path as tells it from the others.
        folder: As it was given.
        facts: `run` of its results: stage, configuration, versions, commit, digests.
        metrics: By name.
        curves: By name.
        reliability: By name.
        cost: Numbers by name.
        samples: The first images, where seeds and labels are known.
        frames: Images on the way.
        notes: What is missing or could not be read.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Number] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    reliability: Mapping[str, Bins] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    samples: Samples | None = None
    frames: Frames | None = None
    notes: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """Such as "test"."""
        return str(self.facts.get("stage") or "")

    @property
    def split(self) -> str:
        """Of what was measured."""
        return SPLITS.get(self.stage, self.stage)

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved; empty where none is kept."""
        return mapping(self.facts.get("config"))

    @property
    def module(self) -> str:
        """Class of the module, such as "Generation"."""
        return leaf(mapping(self.config.get("model")))

    @property
    def is_generation(self) -> bool:
        """Whether it sampled images."""
        return "denoiser_evaluations" in self.cost

    @property
    def terms(self) -> tuple[Term, ...]:
        """Of its guidance."""
        guidance = mapping(arguments(self.config, "model").get("guidance"))
        return tuple(term_of(name, mapping(node)) for name, node in sorted(guidance.items()))

    @property
    def method(self) -> str:
        """Names of the terms of a generation, otherwise the module."""
        if not self.is_generation:
            return self.module
        return " + ".join(term.name for term in self.terms) or UNGUIDED

    @property
    def sampler(self) -> str:
        """Sampler and its steps, where it has one."""
        sampler = mapping(arguments(self.config, "model").get("sampler"))
        grid = mapping(mapping(sampler.get("init_args")).get("grid"))
        given = mapping(grid.get("init_args"))
        steps = given.get("steps", given.get("spacing"))
        return leaf(sampler) + (f", {steps} steps" if isinstance(steps, int | str) else "")

    @property
    def seeds(self) -> str:
        """First and last number of the images that were made, otherwise the seed of the run."""
        data = arguments(self.config, "data")
        first, count = whole_number(data.get("first")), whole_number(data.get("count"))
        if self.is_generation and first is not None and count:
            return f"{first} to {first + count - 1}"
        seed = self.facts.get("seed")
        return "" if seed is None else str(seed)

    @property
    def n(self) -> int | None:
        """Images or rows that it measured; of a generation, images that it made."""
        count = whole_number(arguments(self.config, "data").get("count"))
        if self.is_generation and count is not None:
            return count
        return max((each.n for each in self.metrics.values() if each.n is not None), default=None)


def term_of(name: str, node: Mapping[str, Any]) -> Term:
    """A term, with the product of the scales around it."""
    scale: float | str | None = None
    while "term" in (given := mapping(node.get("init_args"))):
        own = given.get("scale")
        if own is None and (weight := number(given.get("weight"))) is not None:
            own = weight - 1
        if leaf(node) == "Scaled" and own is not None:
            factor = number(own)
            if scale is None:
                scale = str(own) if factor is None else factor
            elif factor is None or isinstance(scale, str):
                scale = f"{scale} x {own}"
            else:
                scale *= factor
        node = mapping(given["term"])
    return Term(name, leaf(node), scale)


def leaf(node: Mapping[str, Any]) -> str:
    """Name of a class in a configuration."""
    return str(node.get("class_path") or "").rpartition(".")[2]


def arguments(config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Arguments of the model or the data of a configuration."""
    return mapping(mapping(config.get(part)).get("init_args"))


def mapping(value: Any) -> Mapping[str, Any]:
    """A dict as it is, nothing of anything else."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number beyond float64
        return None
    return found if math.isfinite(found) else None


def whole_number(value: Any) -> int | None:
    """A whole number of at least 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def numbers(value: Any) -> tuple[float, ...] | None:
    """A list of finite numbers."""
    if not isinstance(value, list):
        return None
    found = tuple(each for each in map(number, value) if each is not None)
    return found if len(found) == len(value) else None


def labels(runs: Sequence[Run], longest: int = 20) -> dict[str, str]:
    """A short text for each run by its name, for figures; no two are the same."""
    found: dict[str, str] = {}
    for run in runs:
        text, turn = figures.plain_text(run.name), 2
        half = (longest - 1) // 2
        if len(text) > longest:
            text = f"{text[:half]}…{text[-half:]}"
        own = text
        while own in found.values():
            own, turn = f"{text} ({turn})", turn + 1
        found[run.name] = own
    return found
