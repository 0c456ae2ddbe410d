"""A page of replicated tables: what a paper found, what was measured here, and whether it agrees.

Two cells make the same images' numbers, block by block, so a claim is judged by the differences of
their blocks: it agrees where their 95% interval by Student's t lies on the claimed side of 0,
disagrees where it lies on the other side, and is open otherwise.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from robustguide.files import whole
from robustguide.report import ablation, figures
from robustguide.report.page import Table, shown

READER = "class_accuracy/reader"  # of the classifier that guides, at the last level it read
METRICS = {
    "frechet": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy, independent judge",
    "class_accuracy/robust": "robust judge",
    READER: "reader",
    "integral_ece": "integral ECE",
}
COSTS = {"denoiser_evaluations": "denoiser", "classifier_backward": "classifier, backward"}
SHOWN = 8  # rows of a picture
CLAIM = re.compile(r"(?P<metric>[\w/]+): (?P<first>\S+) (?P<relation>[<>]) (?P<second>\S+)")
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


@dataclass(frozen=True)
class Claim:
    """That a metric of one cell is below or above that of another.

    Attributes:
        metric: Name in the results, up to the protocol: frechet, class_accuracy/robust.
        first: A cell.
        relation: "<" or ">".
        second: Another cell.
    """

    metric: str
    first: str
    relation: str
    second: str

    @classmethod
    def read(cls, text: str) -> "Claim":
        """Of `metric: first < second`.

        Raises:
            ValueError: For a text of another form.
        """
        found = CLAIM.fullmatch(text)
        if found is None:
            raise ValueError(
                f"The claim {text!r} is none; expected metric: cell < cell, or >, such as "
                "frechet: robust_2 < plain_2."
            )
        return cls(**found.groupdict())

    def __str__(self) -> str:
        return f"{self.metric}: {self.first} {self.relation} {self.second}"


@dataclass(frozen=True)
class Planned:
    """A table of a paper, as it is planned.

    Attributes:
        name: By which it is asked for.
        title: What it asks.
        source: The paper, and the number of its table.
        found: What stands there.
        cells: Names of cells, in the order of the rows.
        claims: What should hold of them.
        note: What was learnt from ours; by hand, once it has been measured.
    """

    name: str
    title: str
    source: str
    found: str
    cells: tuple[str, ...]
    claims: tuple[Claim, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the blocks say of a claim.

    Attributes:
        claim: The claim.
        word: "agrees", "disagrees", "open" or "not measured".
        mean: Of first minus second, over the blocks.
        half_width: Of its 95% interval.
    """

    claim: Claim
    word: str
    mean: float | None = None
    half_width: float | None = None


def numbers(runs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What the finished blocks of each cell measured, by names without the protocol.

    Args:
        runs: Run folders with results, one or more for each cell.

    Returns:
        By cell: `blocks`, and `metrics` and `cost`, each a list of one number a block by name.
    """
    return {
        cell: numbers_of([json.loads((folder / "results.json").read_text()) for folder in each])
        for cell, each in runs.items()
    }


def numbers_of(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one cell."""
    metrics: dict[str, list[float | None]] = {name: [] for name in METRICS}
    for block in blocks:
        found = {plain(name): one["value"] for name, one in block["metrics"].items()}
        along = block["curves"].get("trajectory", {}).get("label_agreement")
        found |= {READER: along[-1]} if along else {}
        for name, values in metrics.items():
            values.append(ablation.number(found.get(name)))
    cost = {name: [block["cost"][name] for block in blocks] for name in COSTS}
    return {"blocks": len(blocks), "metrics": metrics, "cost": cost}


def plain(name: str) -> str:
    """`frechet/fashion_mnist_features` as `frechet`; judges keep their names."""
    kind, _, rest = name.partition("/")
    return name if kind == "class_accuracy" and rest else kind


def verdict(
    claim: Claim, first: Sequence[float | None], second: Sequence[float | None]
) -> Verdict:
    """Of the blocks that both cells have.

    Args:
        claim: What should hold.
        first: The metric of its first cell, block by block.
        second: Of its second.
    """
    pairs = zip(first, second, strict=False)  # a cell may have fewer blocks yet
    off = [one - other for one, other in pairs if one is not None and other is not None]
    if len(off) < 2:
        return Verdict(claim, "not measured")
    found = ablation.interval(off)
    assert found.mean is not None and found.half_width is not None
    side = found.mean if claim.relation == ">" else -found.mean
    clear = abs(found.mean) > found.half_width
    word = ("agrees" if side > 0 else "disagrees") if clear else "open"
    return Verdict(claim, word, found.mean, found.half_width)


def verdicts(planned: Planned, found: Mapping[str, Any]) -> list[Verdict]:
    """Of all claims of a table."""

    def of(claim: Claim, cell: str) -> list[float | None]:
        values: list[float | None] = found[cell]["metrics"][claim.metric] if cell in found else []
        return values

    return [verdict(each, of(each, each.first), of(each, each.second)) for each in planned.claims]


def table(planned: Planned, found: Mapping[str, Any], blocks: int) -> Table:
    """A row a cell, with what its finished blocks say.

    Args:
        planned: The table.
        found: Of `numbers`; cells that have not run are missing.
        blocks: That each cell shall have.
    """
    rows = []
    for cell in planned.cells:
        there = found.get(cell, {"blocks": 0, "metrics": {}, "cost": {}})
        name = cell.replace("_", " ")
        if there["blocks"] < blocks:
            name += f" ({there['blocks']} of {blocks} blocks)" if there["blocks"] else " (not run)"
        metrics = (entry(there["metrics"].get(metric, ())) for metric in METRICS)
        costs = (mean(there["cost"].get(key, ())) for key in COSTS)
        rows.append([name, *metrics, *(shown(cost, ".3g") for cost in costs)])
    return Table(["cell", *METRICS.values(), *COSTS.values()], rows)


def entry(values: Sequence[float | None]) -> str:
    """`0.934 ± 0.012`; the value alone where there is one block."""
    if len(values) < 2:
        return shown(mean(values), ".3f")
    return ablation.cell(asdict(ablation.interval(values)), "metrics")


def mean(values: Sequence[float | None]) -> float | None:
    """Of numbers that are all there; null otherwise."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None


def section(planned: Planned, found: Mapping[str, Any], blocks: int, picture: str | None) -> str:
    """A table as Markdown, with what the paper found and whether ours agrees.

    Args:
        planned: The table.
        found: Of `numbers`.
        blocks: That each cell shall have.
        picture: Address of its picture, from the page; null where there is none.
    """
    lines = [f"## {planned.title}", "", f"{planned.source}. {planned.found}", ""]
    lines += [ablation.markdown(table(planned, found, blocks)).strip(), ""]
    for each in verdicts(planned, found):
        off = (
            "" if each.mean is None else f" (difference {each.mean:+.3g} ± {each.half_width:.2g})"
        )
        lines.append(f"* `{each.claim}`: **{each.word}**{off}")
    lines += [""] if planned.claims else []
    lines += [planned.note, ""] if planned.note else []
    if picture:
        lines += [f"![The same seeds and classes, a row each: {planned.title}]({picture})", ""]
    command = f"robustguide replicate {planned.name}"
    return "\n".join([*lines, "```bash", command, "```", ""])


def picture(planned: Planned, folders: Mapping[str, Sequence[Path]]) -> Figure | None:
    """The first images of the first block of the cells; null where none kept theirs."""
    kept = {
        cell.replace("_", " "): folders[cell][:1]
        for cell in planned.cells
        if folders.get(cell) and (folders[cell][0] / "samples.safetensors").is_file()
    }
    if len(kept) < 2:
        return None
    chosen = list(kept)[:: max(1, -(-len(kept) // SHOWN))]
    return ablation.samples({name: kept[name] for name in chosen})


def write(
    page: Path,
    images: Path,
    tables: Mapping[str, Planned],
    folders: Mapping[str, Sequence[Path]],
    blocks: int,
) -> dict[str, list[Verdict]]:
    """Writes tables into a page between its marks, and their pictures.

    Args:
        page: Markdown that holds the marks.
        images: Folder of the pictures; one that is there stays where runs kept no images.
        tables: By name.
        folders: Of the finished blocks of each cell, none or more.
        blocks: That each cell shall have.

    Returns:
        Verdicts by table.

    Raises:
        ValueError: The page has no marks.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}; the tables go between them.")
    found = numbers({cell: each for cell, each in folders.items() if each})
    parts, judged = [], {}
    for name, planned in tables.items():
        file, made = images / f"replication_{name}.png", picture(planned, folders)
        if made is not None:
            figures.save(made, file)
        address = relpath(file, page.parent) if file.is_file() else None
        parts.append(section(planned, found, blocks, address))
        judged[name] = verdicts(planned, found)
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    with whole(page) as part:
        part.write_text("\n".join([head + BEGIN, "", *parts, END]) + tail)
    return judged
