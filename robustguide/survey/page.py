"""The page of a survey: one HTML file that opens offline, keeps to itself and sends nothing.

Its content is JSON in a data block, in which `<`, `>` and `&` are escaped, so no text can end the
block; the script shows texts by `textContent` alone. The policy lets run the one script of the
page, by its SHA-256, and nothing else.
"""

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from robustguide.data.generated.base import as_png
from robustguide.files import whole
from robustguide.report.page import style as style_with

POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Pair:
    """Two images of one shape."""

    left: UInt8[np.ndarray, "c h w"]
    right: UInt8[np.ndarray, "c h w"]


@dataclass(frozen=True)
class Content:
    """All that a page shows; the three tuples are of one length.

    Attributes:
        title: Of the page.
        prompts: What is asked about each pair.
        ids: Of the questions.
        pairs: Their images.
        scale: Pixels of the page for each pixel of an image.
        has_ties: Whether "no difference" may be answered.
    """

    title: str
    prompts: tuple[str, ...]
    ids: tuple[str, ...]
    pairs: tuple[Pair, ...]
    scale: int
    has_ties: bool

    @cached_property
    def told(self) -> dict[str, Any]:
        """As plain data."""
        rows = zip(self.ids, self.prompts, self.pairs, strict=True)
        questions = [
            {"id": own, "prompt": prompt, "left": url(pair.left), "right": url(pair.right)}
            for own, prompt, pair in rows
        ]
        return {"title": self.title, "ties": self.has_ties, "questions": questions}

    def digest(self) -> str:
        """SHA-256, by which answers name the survey."""
        return hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()


def write_page(path: str | os.PathLike[str], content: Content) -> None:
    """Writes the page, under its final name only once it is whole."""
    with whole(path) as part:
        part.write_text(html(content), encoding="utf-8", newline="\n")


def html(content: Content) -> str:
    """The page."""
    script = packaged("page.js")
    h, w = content.pairs[0].left.shape[1:]
    rendering = "pixelated" if content.scale > 1 else "auto"
    sizes = f":root {{ --width: {w * content.scale}px; --rendering: {rendering}; }}\n"
    style = sizes + style_with(Path(__file__).with_name("page.css"))
    return packaged("page.html").format(
        policy=POLICY.format(script=source_hash(script), style=source_hash(style)),
        title=escape(content.title),
        style=style,
        script=script,
        width=w,
        height=h,
        data=as_block({"survey": content.digest(), **content.told}),
    )


def packaged(name: str) -> str:
    """A file of this package."""
    return files("robustguide.survey").joinpath(name).read_text(encoding="utf-8")


def source_hash(source: str) -> str:
    """Of an inline script or style, as a Content-Security-Policy names it."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def as_block(data: Any) -> str:
    """JSON for a data block: in ASCII, so U+2028 is escaped, and so are `<`, `>` and `&`."""
    text = json.dumps(data)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def url(pixels: UInt8[np.ndarray, "c h w"]) -> str:
    """An image inside the page, which tells of nothing but its pixels."""
    return f"data:image/png;base64,{base64.b64encode(as_png(pixels)).decode()}"
