"""The gradient atlas for people: a table, curves by noise level, the picture, and one page."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from robustguide.report.multiples import Panel, small_multiples
from robustguide.report.page import (
    Block,
    Cell,
    Heading,
    Listing,
    Paragraph,
    Picture,
    Table,
    write_page,
)
from robustguide.report.sheets import gradient_panel

Document = Mapping[str, Any]
HOW_TO_READ = (
    "Each row is one noise level, each column one direction, and each tile has its own scale: "
    "compare patterns, not strengths. Where a tile is red a brighter pixel raises the "
    "log-probability, where it is blue a darker one does; of colour images, grey changes nothing. "
    "Strokes or outlines of the class mean that the classifier answers to what people see (its "
    "gradients are perceptually aligned); speckle means that it answers to single pixels. At low "
    "noise an image that already shows the class leaves little to gain, whatever the tile shows: "
    "look at the norm."
)


def table(document: Document) -> Table:
    """A row a direction and level; means with their standard errors."""
    rows: list[list[Cell]] = []
    for each in document["directions"]:
        found = each["measured"]
        for place, level in enumerate(document["levels"]):
            norm = found["norm"][place]
            rows.append(
                [
                    each["name"],
                    f"{level:g}",
                    norm["value"],
                    *(mean(found[key][place]) for key in ("cosine", "neighbour", "low_share")),
                ]
            )
    titles = ["direction", "sigma", "norm", "cosine", "neighbour", "low share"]
    return Table(titles, rows, caption(document), {"norm": ".3g"})


def compared(document: Document) -> Table:
    """A row a direction but the first, and level: what it has more, image by image."""
    first, *others = document["directions"]
    rows: list[list[Cell]] = []
    for each in others:
        found = each["minus_first"]
        for place, level in enumerate(document["levels"]):
            keys = ("cosine", "neighbour", "low_share")
            cells = [mean(found[key][place]) for key in keys]
            rows.append([each["name"], f"{level:g}", ratio(found["norm"][place]), *cells])
    titles = ["direction", "sigma", "norm, times", "cosine", "neighbour", "low share"]
    about = (
        f"Against {first['name']} on the same images and noises: the ratio of the norms "
        "(geometric mean, with its 95 % interval) and differences ± one standard error."
    )
    return Table(titles, rows, about)


def ratio(found: Mapping[str, Any]) -> str | None:
    """Of a mean of logarithms, with its limits."""
    if found["value"] is None or found["limits"] is None:
        return None
    value, low, high = (f"{math.exp(x):.3g}" for x in (found["value"], *found["limits"]))
    return f"{value} [{low}, {high}]"


def mean(found: Mapping[str, Any]) -> str | None:
    """A mean with its standard error."""
    if found["value"] is None:
        return None
    error = found["standard_error"]
    return f"{found['value']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def caption(document: Document) -> str:
    """What the columns of the table are."""
    compared = (
        "cosine: with the classifier-free direction of the denoiser. "
        if document["has_direction"]
        else "cosine: needs a --denoiser that knows labels and the null label. "
    )
    return (
        f"{document['n']} {document['split']} images, one noise each for all directions and "
        "levels. norm: median of sigma |g|, in nats. " + compared + "neighbour: cosine with the "
        "gradient at the next level. low share: energy below "
        f"{document['cutoff']:g} of Nyquist's frequency; white noise has "
        f"{document['white_share']:.3f}. ± is one standard error over images."
    )


def curves(document: Document) -> Figure:
    """A panel a quantity: medians with quartiles, means with 95 % intervals."""
    panels = [
        panel(document, "norm", "norm sigma |g| in nats:\nmedian and quartiles", "quartiles"),
        panel(
            document, "low_share", f"energy below {document['cutoff']:g}\nof Nyquist's frequency"
        ),
        panel(document, "neighbour", "cosine with the gradient\nat the next level"),
    ]
    if document["has_direction"]:
        panels.append(panel(document, "cosine", "cosine with the\nclassifier-free direction"))
    note = "bands: quartiles of images for the norm, else 95 % of the mean; dotted: white noise"
    return small_multiples(panels, note, columns=2)


def panel(document: Document, key: str, title: str, band: str = "limits") -> Panel:
    """One quantity of all directions that have it."""
    levels = document["levels"]
    lines, bands = {}, {}
    for each in document["directions"]:
        found = each["measured"][key]
        if all(one["value"] is None for one in found):
            continue
        # a logarithm has no place for 0
        values = [
            number(one["value"] or None) if key == "norm" else number(one["value"])
            for one in found
        ]
        lines[each["name"]] = levels, values
        ends = [one[band] or (None, None) for one in found]
        bands[each["name"]] = [number(low) for low, _ in ends], [number(high) for _, high in ends]
    return Panel(
        title,
        lines,
        level=document["white_share"] if key == "low_share" else None,
        bands=bands,
        limits=(0, 1) if key == "low_share" else (None, None),
        is_logarithmic=key == "norm",
    )


def number(value: float | None) -> float:
    """NaN for none."""
    return math.nan if value is None else value


def picture(
    x: Float[Tensor, "n c h w"],
    gradients: Mapping[str, Float[Tensor, "n c h w"]],
    document: Document,
) -> Figure:
    """The atlas: a row a level, a column a direction, beside the noisy image."""
    return gradient_panel(x, gradients, document["levels"], heading(document))


def heading(document: Document) -> str:
    """What the picture shows."""
    shown = document["picture"]
    return (
        f"gradients of log p({shown['class_name']} | x) at image {shown['image']}, "
        f"which shows {shown['image_class_name']}"
    )


def write(document: Document, drawn: Figure, path: Path) -> Path:
    """One page that opens offline.

    Args:
        document: What `robustguide atlas` writes as JSON.
        drawn: See `picture`.
        path: The HTML file.
    """
    names = [each["name"] for each in document["directions"]]
    levels = document["levels"]
    about = heading(document)
    blocks: Sequence[Block] = [
        Paragraph(
            f"What {together(names)} would add to an image at {len(levels)} noise levels, "
            f"sigma {levels[0]:g} to {levels[-1]:g}."
        ),
        Picture(
            drawn,
            f"The noisy image and the {about}: a row a noise level, a column each for "
            f"{together(names)}.",
            about[0].upper() + about[1:] + ".",
        ),
        Paragraph(HOW_TO_READ),
        Heading("By noise level"),
        Picture(
            curves(document),
            "Curves against the noise level of norm, low share and cosines; the table has them.",
            "The neighbour's cosine stands at the lower of its two levels.",
        ),
        table(document),
        *([compared(document)] if len(names) > 1 else []),
        Heading("How it was measured"),
        *(Listing(each["name"], listed(each)) for each in document["directions"]),
        Listing("versions", "\n".join(f"{k} {v}" for k, v in document["versions"].items())),
    ]
    return write_page(path, "robustguide: gradient atlas", blocks)


def together(names: Sequence[str]) -> str:
    """Names in a sentence."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def listed(direction: Document) -> str:
    """Identity of a direction."""
    return f"digest {direction['digest']}\n{json.dumps(direction['asked'], indent=1)}"
