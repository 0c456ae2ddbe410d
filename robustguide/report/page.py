"""A report as one HTML file that opens offline: no scripts, and pictures inside it."""

import base64
import math
import os
import re
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import rich.table
from matplotlib.figure import Figure

from robustguide.files import whole
from robustguide.report.figures import DPI

Cell = str | int | float | None

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{skip}<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing is ever fetched
SHARPNESS = 2  # pixels of a figure for each pixel of the page, for fine screens
NARROW = "30rem"  # the letters of a figure can be read down to this width
PNG = b"\x89PNG\r\n\x1a\n"
MISSING = "—"
# A number as callers write it: 1,024  -0.5  2e-05  84%  3.2 s  0.94 ± 0.01  0.9 [0.8, 1.0]
ONE = r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?"
SPREAD, UNIT = rf"( ?± ?{ONE})?( ?\[{ONE}, {ONE}\])?", r"( ?%| [a-zA-Z]{1,3})?"
DATE = r"\d{4}-\d\d-\d\d( \d\d:\d\d)?"  # is not broken either
NUMBER = re.compile(rf"{ONE}{SPREAD}{UNIT}|{DATE}|{MISSING}|")


class Block(ABC):
    """A part of a page."""

    @abstractmethod
    def html(self) -> str:
        """The part as HTML, in which every text is escaped."""


@dataclass(frozen=True)
class Heading(Block):
    """Begins a section; level 3 begins a part of one. A page lists those that have an anchor."""

    text: str
    level: int = 2
    anchor: str = ""

    def html(self) -> str:
        """An `h2` or `h3`."""
        named = f' id="{escape(self.anchor)}"' if self.anchor else ""
        return f"<h{self.level}{named}>{escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Contents(Block):
    """Links to the headings that have an anchor."""

    headings: Sequence[Heading]

    def html(self) -> str:
        """A `nav`."""
        links = (
            f'<li><a href="#{escape(each.anchor)}">{escape(each.text)}</a></li>'
            for each in self.headings
        )
        listed = "\n".join(links)
        return f'<nav aria-label="Contents">\n<ul>\n{listed}\n</ul>\n</nav>'


@dataclass(frozen=True)
class Paragraph(Block):
    """Text; its line breaks are kept. The first one below the title is set larger."""

    text: str

    def html(self) -> str:
        """A `p`."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Listing(Block):
    """Lines that are shown as they are, folded away under a title."""

    title: str
    text: str

    def html(self) -> str:
        """A `pre` in `details`, which opens without a script."""
        lines = f'<pre tabindex="0">{escape(self.text)}</pre>'
        return f"<details><summary>{escape(self.title)}</summary>{lines}</details>"


@dataclass(frozen=True)
class Definitions(Block):
    """What names mean, folded away under a title.

    Attributes:
        title: Of all.
        entries: Text by name.
    """

    title: str
    entries: Mapping[str, str]

    def html(self) -> str:
        """A `dl` in `details`."""
        pairs = (
            f"<dt>{escape(k)}</dt><dd>{escape(text)}</dd>" for k, text in self.entries.items()
        )
        listed = "\n".join(pairs)
        summary = f"<summary>{escape(self.title)}</summary>"
        return f"<details>{summary}\n<dl>\n{listed}\n</dl>\n</details>"


@dataclass(frozen=True)
class Table(Block):
    """Rows whose first cell names them; columns of numbers are aligned at the right.

    Attributes:
        columns: Title of each column.
        rows: Cells, a number, a text or nothing; a number that is not finite is nothing.
        caption: What the table shows.
        formats: Format of the numbers by column, such as ".3f"; otherwise whole numbers have
            thousands separated and others four digits.

    Raises:
        ValueError: If a row has not one cell a column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"The row {list(row)} has {len(row)} cells for {len(self.columns)} columns "
                    f"({', '.join(self.columns)}); give one a column, None where there is nothing."
                )
        unknown = set(self.formats) - set(self.columns)
        if unknown:
            raise ValueError(
                f"There are formats for {', '.join(sorted(unknown))}, but the columns are "
                f"{', '.join(self.columns)}; use their titles."
            )

    def text(self) -> rich.table.Table:
        """The same for a terminal."""
        table = rich.table.Table(caption=self.caption or None)
        for index, column in enumerate(self.columns):
            table.add_column(column, no_wrap=index == 0)
        forms = [self.formats.get(column, "") for column in self.columns]
        for row in self.rows:
            table.add_row(*map(shown, row, forms))
        return table

    def narrow(self) -> rich.table.Table:
        """Without lines, which would be too wide for a terminal; the caption is left to prose."""
        table = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for index, column in enumerate(self.columns):
            table.add_column(column, no_wrap=index == 0, overflow="fold")
        forms = [self.formats.get(column, "") for column in self.columns]
        for row in self.rows:
            table.add_row(*map(shown, row, forms))
        return table

    def html(self) -> str:
        """A `table` that scrolls inside its own container."""
        forms = [self.formats.get(column, "") for column in self.columns]
        rows = [list(map(shown, row, forms)) for row in self.rows]
        columns = range(len(self.columns))
        numeric = [index > 0 and all(is_number(row[index]) for row in rows) for index in columns]
        head = "".join(_cell(*each, "col") for each in zip(self.columns, numeric, strict=True))
        body = "\n".join(f"<tr>{_cells(row, numeric)}</tr>" for row in rows)
        caption = f"<figcaption>{escape(self.caption)}</figcaption>\n" if self.caption else ""
        label = escape(self.caption or f"Table of {self.columns[0]}")
        return (
            f'<figure class="table">\n{caption}'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n'
            f"<table>\n<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
            "</div>\n</figure>"
        )


@dataclass(frozen=True)
class Picture(Block):
    """A figure, or a PNG file.

    Attributes:
        source: What is shown.
        alt: The same in words, for those who do not see it.
        caption: Text below.

    Raises:
        ValueError: Without an alternative text.
    """

    source: Figure | str | os.PathLike[str]
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("A picture needs a text for those who do not see it; set alt.")

    def html(self) -> str:
        """An `img` that holds its own bytes.

        Raises:
            ValueError: If the file is not a PNG.
        """
        if isinstance(self.source, Figure):
            data, scale = drawn(self.source), SHARPNESS
        else:
            data, scale = Path(self.source).read_bytes(), 1
        if data[: len(PNG)] != PNG or len(data) < 24:
            raise ValueError(f"{self.source} is not a PNG file; give a PNG or a figure.")
        width, height = (pixels // scale for pixels in struct.unpack(">II", data[16:24]))
        caption = f"\n<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure class="picture">\n<div class="scroll" tabindex="0">\n'
            f'<img alt="{escape(self.alt)}" width="{width}" height="{height}" '
            f'style="min-width: min({width}px, {NARROW})" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">\n'
            f"</div>{caption}\n</figure>"
        )


def with_contents(blocks: Sequence[Block]) -> tuple[list[Block], str]:
    """Blocks with a list of the anchored headings before the first of them, and a link past it."""
    headings = [each for each in blocks if isinstance(each, Heading) and each.anchor]
    if not headings:
        return list(blocks), ""
    first = headings[0]
    place = next(index for index, each in enumerate(blocks) if each is first)
    skip = f'<a class="skip" href="#{escape(first.anchor)}">Skip to {escape(first.text)}</a>\n'
    return [*blocks[:place], Contents(headings), *blocks[place:]], skip


def write_page(path: str | os.PathLike[str], title: str, blocks: Sequence[Block]) -> Path:
    """Writes a page, under its final name only once it is whole; makes the folder if need be.

    Args:
        path: The HTML file.
        title: Of the page.
        blocks: Its parts, from top to bottom.
    """
    parts, skip = with_contents(blocks)
    page = PAGE.format(
        policy=POLICY,
        title=escape(title),
        style=style(Path(__file__).with_name("page.css")),
        skip=skip,
        body="\n".join(block.html() for block in parts),
    )
    page = page.encode("utf-8", "replace").decode("utf-8")  # half a character of a file's name
    with whole(path) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)


def style(own: Path) -> str:
    """Colours and letters of all pages, and what one page adds from a file of its own."""
    palette = Path(__file__).with_name("palette.css")
    return "".join(file.read_text(encoding="utf-8") for file in (palette, own))


def shown(cell: Cell, form: str = "") -> str:
    """A cell as text; a dash for nothing."""
    if isinstance(cell, str):
        return cell
    if cell is None or not math.isfinite(cell):
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return format(cell, form or ("," if isinstance(cell, int) else ".4g"))


def is_number(text: str) -> bool:
    """Whether a text is a number, perhaps with its error, interval or unit, or a dash."""
    return NUMBER.fullmatch(text) is not None


def drawn(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = BytesIO()
    with warnings.catch_warnings():  # of names in letters that the font has not
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # without the library's version in it, the same figure is the same page
        figure.savefig(buffer, format="png", dpi=SHARPNESS * DPI, metadata={"Software": None})
    return buffer.getvalue()


def _cells(row: Sequence[str], numeric: Sequence[bool]) -> str:
    """The cells of a row, of which the first names it."""
    scopes = ["row", *[""] * (len(row) - 1)]
    return "".join(map(_cell, row, numeric, scopes))


def _cell(text: str, is_numeric: bool, scope: str = "") -> str:
    """A cell; with a scope, one that names its row or column."""
    start = f'th scope="{scope}"' if scope else "td"
    align = ' class="number"' if is_numeric else ""
    return f"<{start}{align}>{escape(text)}</{start[:2]}>"
