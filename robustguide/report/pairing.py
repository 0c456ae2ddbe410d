"""The same seeds and labels in several runs, side by side: seed by method by scale."""

from collections.abc import Iterator, Sequence
from typing import Any

from robustguide.report import figures, sheets
from robustguide.report.page import Picture
from robustguide.report.runs import Run, Samples, Term, arguments, labels, leaf, mapping

COLUMNS, ROWS = 10, 12  # images at most in a figure
SIDE = 64  # pixels of an image that the page keeps
LETTERS = 16  # in a line of a row's name


def pictures(runs: Sequence[Run]) -> tuple[list[Picture], list[str]]:
    """A figure for the runs that have seeds and labels in common, and what is not compared.

    Runs of different image shapes or classes are never in one figure, nor are runs that share no
    pair of seed and label.
    """
    drawn, notes = [], []
    kinds: dict[Any, list[Run]] = {}
    for run in runs:
        if run.samples is not None:
            kinds.setdefault(kind(run, run.samples), []).append(run)
    for group in kinds.values():
        for alike, pairs in sharing(sorted(group, key=place)):
            names = ", ".join(run.name for run in alike)
            if len(alike) == 1 and len(runs) > 1:
                notes.append(f"No other run has images of the seeds and labels of {names}.")
            drawn += [
                picture(alike[first : first + ROWS], pairs[:COLUMNS], len(pairs))
                for first in range(0, len(alike), ROWS)
            ]
    return drawn, notes


def kind(run: Run, samples: Samples) -> Any:
    """What images must have in common for their labels to mean the same."""
    data = arguments(run.config, "data")
    reference = leaf(mapping(data.get("reference")))
    names = data.get("class_names")
    classes = tuple(map(str, names)) if isinstance(names, list) else None
    return tuple(samples.pixels.shape[1:]), data.get("num_classes"), classes, reference


def place(run: Run) -> tuple[Any, ...]:
    """Runs without guidance first, then by their terms, and by their scales."""
    terms = run.terms
    scales = tuple(term.scale if isinstance(term.scale, float | int) else 1.0 for term in terms)
    return len(terms), tuple(term.name for term in terms), scales, run.name


def sharing(runs: Sequence[Run]) -> Iterator[tuple[list[Run], list[tuple[int, int]]]]:
    """Runs that share pairs of seed and label, with the pairs; each run once."""
    left = list(runs)
    while left:
        alike: list[Run] = []
        rest: list[Run] = []
        common: set[tuple[int, int]] = set()
        for run in left:
            assert run.samples is not None
            own = set(run.samples.pairs)
            if alike and not common & own:
                rest.append(run)
                continue
            common = common & own if alike else own
            alike.append(run)
        yield alike, sorted(common)
        left = rest


def picture(runs: Sequence[Run], pairs: Sequence[tuple[int, int]], shared: int) -> Picture:
    """A row a run, a column a pair of seed and label."""
    short, rows = labels(runs, 2 * LETTERS), {}
    scales = {run.name: ", ".join(map(shown, run.terms)) for run in runs}
    for run in runs:
        assert run.samples is not None
        where = {pair: row for row, pair in enumerate(run.samples.pairs)}
        pixels = run.samples.pixels[[where[pair] for pair in pairs]]
        images = sheets.coloured(sheets.reduced(pixels.float() / 127.5 - 1, SIDE))
        scale = scales[run.name] if len(set(scales.values())) > 1 else ""
        rows[in_two(short[run.name]) + (f"\nscale {scale}" if scale else "")] = images
    titles = [figures.plain_text(str(y)) for _, y in pairs]
    seeds = ", ".join(f"{index} ({y})" for index, y in pairs)
    alt = (
        f"{len(pairs)} images a row of the same seeds and labels, a row for each of "
        f"{', '.join(run.name for run in runs)}."
    )
    caption = (
        f"A column is one seed and one label; the label stands above. Seeds (labels): {seeds}."
    )
    if shared > len(pairs):
        caption += f" The runs share {shared - len(pairs)} pairs more."
    return Picture(sheets.grid_comparison(rows, titles), alt, caption)


def shown(term: Term) -> str:
    """The scale of a term; without one it is 1."""
    scale = 1.0 if term.scale is None else term.scale
    return figures.plain_text(scale) if isinstance(scale, str) else f"{scale:g}"


def in_two(name: str) -> str:
    """A name in one line, or in two of about the same length."""
    if len(name) <= LETTERS:
        return name
    spaces = [place for place, letter in enumerate(name) if letter == " "]
    middle = len(name) // 2
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle)
    return f"{name[:cut]}\n{name[cut:].lstrip()}"
