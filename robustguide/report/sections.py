"""The sections of a report about any runs, each there only if some run holds what it shows."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from robustguide.report import by_noise, numbers, pairing, sheets
from robustguide.report.page import Block, Heading, Listing, Paragraph, Picture, Table, write_page
from robustguide.report.runs import Frames, Run

MOST = 8  # figures in a section
TITLE = "Report of runs"
COLUMNS = (
    *("run", "stage", "method", "guidance", "sampler", "n", "seeds", "seconds", "ended (UTC)"),
    *("version", "commit"),
)


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading of its own.

    Attributes:
        anchor: Name of the place, for links.
        title: Of the heading.
        blocks: Below it.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]

    def parts(self) -> list[Block]:
        """Heading and blocks."""
        return [Heading(self.title, anchor=self.anchor), *self.blocks]


def sections(runs: Sequence[Run]) -> list[Section]:
    """All that the runs hold data for, in the order of the page."""
    grids, unpaired = pairing.pictures(runs)
    broken: list[str] = []
    diagrams = by_noise.diagrams(runs, broken)
    found = [
        Section("runs", "What was run", [overview(runs)]),
        Section("notes", "What is missing", notes(runs, broken)),
        Section("metrics", "Metrics", numbers.tables(runs)),
        Section("seeds", "The same seeds", [*drawn(grids), *map(Paragraph, unpaired)]),
        Section("curves", "By noise level", drawn(by_noise.pictures(runs))),
        Section("reliability", "Reliability diagrams", drawn(diagrams)),
        Section("cost", "Quality and cost", drawn(numbers.quality_cost(runs))),
        Section("trajectories", "On the way", drawn(trajectories(runs))),
        Section("provenance", "Provenance", provenance(runs)),
    ]
    return [each for each in found if each.blocks]


def write_report(
    path: str | os.PathLike[str], runs: Sequence[Run], title: str = TITLE
) -> list[Section]:
    """Writes the page; the same runs give the same bytes.

    Args:
        path: The HTML file.
        runs: From `reading.read_all`.
        title: Of the page.

    Returns:
        The sections that it has.
    """
    found = sections(runs)
    parts = chain.from_iterable(section.parts() for section in found)
    write_page(path, title, [Paragraph(headline(runs)), *parts])
    return found


def headline(runs: Sequence[Run]) -> str:
    """How many runs of what, and of each distance the least value."""
    kinds: dict[str, int] = {}
    for run in runs:
        kind = f"{run.stage} of {run.module}" if run.module else "unknown"
        kinds[kind] = kinds.get(kind, 0) + 1
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    said = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {listed}."]
    for column, name in numbers.columns(runs).items():
        if column.name.partition("/")[0] not in numbers.DISTANCES:
            continue
        alike = [(run, run.metrics.get(column.name)) for run in runs]
        known = [
            (each.value, run.name, each)
            for run, each in alike
            if each and each.identity == column.identity and each.value is not None
        ]
        if len(known) > 1:
            _, least, number = min(known, key=lambda each: each[:2])
            said.append(
                f"The lowest {name} of {len(known)} is that of {least}: {numbers.cell(number)}."
            )
    return " ".join(said)


def overview(runs: Sequence[Run]) -> Table:
    """A row a run."""
    rows = []
    for run in runs:
        versions = run.facts.get("versions")
        version = versions.get("robustguide") if isinstance(versions, dict) else None
        rows.append(
            [
                run.name,
                run.stage or None,
                run.method or None,
                "; ".join(map(str, run.terms)) or None,
                run.sampler or None,
                run.n,
                run.seeds or None,
                None if "seconds" not in run.cost else f"{run.cost['seconds']:.1f}",
                (text(run.facts.get("ended")) or "")[:16].replace("T", " ") or None,
                text(version),
                commit(run),
            ]
        )
    caption = (
        "n: images that were made, or images that were measured. Seeds: the numbers of the images "
        "of a generation, otherwise the seed of the run. Commit: of the code; changed where files "
        "of the package were not those of the commit."
    )
    return Table(COLUMNS, rows, caption)


def commit(run: Run) -> str | None:
    """Beginning of the commit, and whether the package was changed since."""
    found = (text(run.facts.get("git_commit")) or "")[:8]
    return f"{found}, changed" if found and run.facts.get("git_dirty") is True else found or None


def text(value: object) -> str | None:
    """A text, or nothing."""
    return value if isinstance(value, str) else None


def notes(runs: Sequence[Run], more: Sequence[str]) -> list[Block]:
    """What could not be read, a row a note."""
    rows = [[run.name, note] for run in runs for note in run.notes]
    blocks: list[Block] = [Table(["run", "what"], rows)] if rows else []
    return [*blocks, *map(Paragraph, more)]


def drawn(pictures: Sequence[Picture]) -> list[Block]:
    """The first figures, and what the others would show."""
    if len(pictures) <= MOST:
        return list(pictures)
    left = pictures[MOST:]
    of = " ".join(picture.alt for picture in left)
    words = f"{len(left)} figures more are not drawn. {of} Their data lie in the run folders."
    return [*pictures[:MOST], Paragraph(words)]


def trajectories(runs: Sequence[Run]) -> list[Picture]:
    """One image of each run on its way; of a seed and label that all have, if there is one."""
    having = [(run, run.frames) for run in runs if run.frames is not None]
    if not having:
        return []
    shared = set.intersection(*(set(frames.pairs) for _, frames in having))
    return [trajectory(run, frames, min(shared, default=None)) for run, frames in having]


def trajectory(run: Run, frames: Frames, pair: tuple[int, int] | None) -> Picture:
    """State, predicted clean image and guidance at some steps."""
    pair = pair or frames.pairs[0]
    row = frames.pairs.index(pair)
    x, denoised, displacement = (
        sheets.reduced(frames.tensors[name][row].float(), pairing.SIDE)
        for name in ("x", "denoised", "displacement")
    )
    sigma = frames.tensors["sigma"].double()
    figure = sheets.trajectory(x, denoised / 127.5 - 1, displacement, sigma)
    what = f"{run.name}, seed {pair[0]}, label {pair[1]}"
    caption = (
        f"{what}. State at unit variance, predicted clean image, and what guidance adds to it: "
        "each on a scale of its own, 0 being white in one channel and grey in three."
    )
    return Picture(figure, f"Sampling from noise to image: {what}.", caption)


def provenance(runs: Sequence[Run]) -> list[Block]:
    """Configuration, versions, commit, digests and command of each run."""
    blocks: list[Block] = []
    for run in runs:
        if not run.facts:
            continue
        command = f"robustguide {run.stage} --config {(run.folder / 'config.yaml').as_posix()}"
        lines = [f"# runs it again: {command}", *typed(run)]
        lines.append(f"# folder: {run.folder.as_posix()}")
        lines.append(json.dumps(run.facts, indent=1))
        blocks.append(Listing(run.name, "\n".join(lines)))
    return blocks


def typed(run: Run) -> list[str]:
    """A line with the words that started a run, where it tells them."""
    words = run.facts.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return []
    return [f"# was typed: {shlex.join(words)}"]


def count_figures(found: Sequence[Section]) -> int:
    """Pictures in sections."""
    return sum(isinstance(block, Picture) for section in found for block in section.blocks)
