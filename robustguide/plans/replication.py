"""A plan of cells and of the tables that show them, so that a paper's tables run as one command.

A cell is a method of an `Ablation`: some configurations and options over those that all share. A
sweep makes a cell of each value of an option. Tables name cells, and what the paper found of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from robustguide.complaints import nearest
from robustguide.plans import cost
from robustguide.plans.ablation import Ablation, Way
from robustguide.plans.measuring import measured
from robustguide.report.replication import Claim, Planned

PLAN = Path("docs/replication/plan.yaml")
OF_PLAN = {"configs", "base", "count", "blocks", "first", "cells", "tables"}
OF_CELL, OF_TABLE = {"configs", "set", "sweep"}, {"title", "source", "found", "cells", "claims"}


@dataclass(frozen=True)
class Replication:
    """Cells as the methods of an ablation, and the tables that show them.

    Attributes:
        runs: All cells.
        tables: By name.
    """

    runs: Ablation
    tables: dict[str, Planned] = field(default_factory=dict)

    def chosen(self, names: Sequence[str]) -> "Replication":
        """Some of the tables, and the cells that they show.

        Args:
            names: Of tables; none are all.

        Raises:
            ValueError: For a name that no table has.
        """
        for name in names:
            if name not in self.tables:
                raise ValueError(
                    f"There is no table {name!r}{nearest(name, self.tables)}; the plan has "
                    f"{', '.join(self.tables)}."
                )
        tables = {name: self.tables[name] for name in names or self.tables}
        shown = dict.fromkeys(cell for table in tables.values() for cell in table.cells)
        return Replication(self.runs.only(shown), tables)


def read(file: Path, folder: Path, blocks: int | None = None) -> Replication:
    """A plan.

    Args:
        file: YAML with `configs`, a folder, `base` and `cells`, which name files in it without
            their ending, `count`, `blocks`, `first` and `tables`.
        folder: Holds the runs.
        blocks: Of seeds, in place of the plan's.

    Raises:
        FileNotFoundError: The plan or a configuration is not there.
        ValueError: For entries that are none, or tables that name no cell.
    """
    if not file.is_file():
        raise FileNotFoundError(f"The plan {file} is not there (from {Path.cwd()}).")
    said = yaml.safe_load(file.read_text())
    refuse_unknown(f"The plan {file}", said, OF_PLAN)
    configs = Path(said["configs"])
    groups = {
        name: dict(cells(name, about or {}, configs)) for name, about in said["cells"].items()
    }
    runs = Ablation(
        {name: way for group in groups.values() for name, way in group.items()},
        tuple(configs / f"{name}.yaml" for name in said["base"]),
        folder,
        count=said["count"],
        blocks=blocks or said["blocks"],
        first=said.get("first", 0),
    )
    tables = {name: table(name, about, groups) for name, about in said["tables"].items()}
    return Replication(runs, tables)


def cells(name: str, about: Any, folder: Path) -> Iterator[tuple[str, Way]]:
    """The cells of an entry: one, or one for each value of its sweep."""
    refuse_unknown(f"The cell {name!r}", about, OF_CELL)
    configs = tuple(folder / f"{config}.yaml" for config in about.get("configs", ()))
    changes, sweep = tuple(about.get("set", ())), about.get("sweep") or {}
    for values in product(*sweep.values()):
        told = tuple(f"{key}={value}" for key, value in zip(sweep, values, strict=True))
        yield "_".join([name, *(f"{value:g}" for value in values)]), Way(configs, changes + told)


def table(name: str, about: Any, groups: Mapping[str, Mapping[str, Way]]) -> Planned:
    """A table, the names of sweeps replaced by those of their cells."""
    refuse_unknown(f"The table {name!r}", about, OF_TABLE | {"note"})
    known = {cell for group in groups.values() for cell in group}
    shown = [cell for each in about["cells"] for cell in groups.get(each, {each: None})]
    claims = tuple(map(Claim.read, about.get("claims", ())))
    for cell in (*shown, *(each for claim in claims for each in (claim.first, claim.second))):
        if cell not in known:
            raise ValueError(
                f"The table {name!r} names the cell {cell!r}, which the plan has not"
                f"{nearest(cell, known)}."
            )
    for claim in claims:
        if not {claim.first, claim.second} <= set(shown):
            raise ValueError(
                f"The table {name!r} claims {str(claim)!r} of cells it does not show."
            )
    found = {key: " ".join(about.get(key, "").split()) for key in ("source", "found", "note")}
    return Planned(name, about["title"], cells=tuple(shown), claims=claims, **found)


def refuse_unknown(what: str, said: Any, known: set[str]) -> None:
    """Refuses entries that nothing reads."""
    if not isinstance(said, Mapping):
        raise ValueError(f"{what} is {said!r}; expected a mapping of {', '.join(sorted(known))}.")
    for key in said:
        if key not in known:
            raise ValueError(f"{what} has {key!r}{nearest(key, known)}; nothing reads that.")


@dataclass(frozen=True)
class Left:
    """Work of the runs that have no results.

    Attributes:
        flops: Of those whose work does not depend on the images; judges and metrics are not
            counted.
        speed: FLOP/s of a batch of the first of them, measured here.
        timed: Seconds of the others, by a batch of each that was timed here.
    """

    flops: float = 0.0
    speed: float = math.inf
    timed: float = 0.0

    @property
    def hours(self) -> float:
        """On this machine, one run after another."""
        return (self.flops / self.speed + self.timed) / 3600


def cost_of_left(runs: Ablation, batch: int = 20) -> Left:
    """Counts what is left, and times a batch of the first cell of it.

    A cell in which images decide how often a network is asked cannot be counted, and is timed.

    Args:
        runs: Of which some may have results.
        batch: Images of a batch that is timed.
    """
    flops, speed, timed = 0.0, math.inf, 0.0
    for cell in runs.methods:
        images = runs.count * (runs.blocks - len(runs.done(cell)))
        if not images:
            continue
        words = [f"--{change.removeprefix('--')}" for change in runs.methods[cell].changes]
        told = cost.read([str(file) for file in runs.files(cell)], words)
        try:
            found = cost.cost_of(told, runs.count)
        except cost.DependsOnImagesError:
            timed += images / measured(told, batch).images_a_second
            continue
        if not flops:
            speed = found.flops * measured(told, batch).images_a_second
        flops += found.flops * images
    return Left(flops, speed, timed)
