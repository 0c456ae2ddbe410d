import base64
import re
import struct

import pytest
from markup import Reader
from matplotlib.figure import Figure

from robustguide.report import page
from robustguide.report.page import Heading, Listing, Paragraph, Picture, Table, write_page

HOSTILE = "<script>alert('x')</script> & \"quotes\" </main>"


def written(tmp_path, *blocks, title="A page"):
    return Reader(write_page(tmp_path / "page.html", title, blocks).read_text("utf-8"))


def small_figure():
    figure = Figure(figsize=(1, 0.5), dpi=120)
    figure.subplots().plot([0, 1])
    return figure


def test_a_page_is_well_formed_and_in_order(tmp_path):
    reader = written(
        tmp_path,
        Paragraph("First."),
        Heading("Methods"),
        Table(["method", "n"], [["plain", 1000]]),
        Heading("Detail", level=3),
        Picture(small_figure(), "A line."),
        Listing("Configuration", "seed: 0\nmodel:\n  a: 1"),
    )
    assert reader.elements[0]["tag"] == "html" and reader.elements[0]["lang"] == "en"
    tags = [element["tag"] for element in reader.elements]
    shown = [tag for tag in tags if tag in {"h1", "p", "h2", "table", "h3", "img", "pre"}]
    assert shown == ["h1", "p", "h2", "table", "h3", "img", "pre"]
    assert reader.texts("title") == reader.texts("h1") == ["A page"]
    assert reader.texts("pre") == ["seed: 0\nmodel:\n  a: 1"]
    (viewport,) = [meta for meta in reader.all("meta") if meta.get("name") == "viewport"]
    assert "width=device-width" in viewport["content"]


def test_every_text_is_escaped(tmp_path):
    picture = Picture(small_figure(), HOSTILE, HOSTILE)
    table = Table([HOSTILE, "b"], [[HOSTILE, HOSTILE]], HOSTILE)
    listing = Listing(HOSTILE, HOSTILE)
    blocks = (Heading(HOSTILE), Paragraph(HOSTILE), table, picture, listing)
    reader = written(tmp_path, *blocks, title=HOSTILE)
    assert not reader.all("script")
    for tag in ("title", "h1", "h2", "p", "summary", "pre"):
        assert reader.texts(tag) == [HOSTILE], tag
    assert reader.texts("figcaption") == [HOSTILE, HOSTILE]
    assert reader.texts("th") == [HOSTILE, "b", HOSTILE] and reader.texts("td") == [HOSTILE]
    assert reader.all("img")[0]["alt"] == HOSTILE
    (region,) = [div for div in reader.all("div") if div.get("role") == "region"]
    assert region["aria-label"] == HOSTILE


def test_anchored_headings_are_listed_before_the_first_of_them(tmp_path):
    first, second = Heading("One & all", anchor="one"), Heading("Two", anchor="two")
    blocks = (Paragraph("Before."), Heading("No link"), first, Heading("Part", level=3), second)
    reader = written(tmp_path, *blocks)
    assert [(link["href"], link["text"]) for link in reader.all("a")] == [
        ("#one", "Skip to One & all"),
        ("#one", "One & all"),
        ("#two", "Two"),
    ]
    tags = [element["tag"] for element in reader.elements]
    assert tags.index("a") < tags.index("main") < tags.index("p") < tags.index("nav")
    (there,) = [each for each in reader.elements if each.get("id") == "one"]
    assert there["tag"] == "h2" and there["text"] == "One & all"
    assert not written(tmp_path, Heading("No link")).all("nav")


def test_half_a_character_of_a_name_is_written_as_a_question(tmp_path):
    assert written(tmp_path, Paragraph("a\udc80b")).texts("p") == ["a?b"]


def test_nothing_is_fetched(tmp_path):
    reader = written(tmp_path, Picture(small_figure(), "A line."))
    for element in reader.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert element.get(name, "data:").startswith("data:"), element
    (style,) = reader.texts("style")
    assert not re.search(r"url\(|@import|//", style)
    assert not {element["tag"] for element in reader.elements} & {"script", "iframe", "object"}
    (policy,) = [m for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none';")


def test_numbers_are_formatted_and_aligned(tmp_path):
    table = Table(
        ["method", "accuracy", "n", "error", "commit", "note"],
        [
            ["plain", 0.91234, 1000, 1.5e-7, "7219474a", None],
            ["robust", None, 20000, float("nan"), "12", "0.94 ± 0.01"],
        ],
        formats={"accuracy": ".3f"},
    )
    reader = written(tmp_path, table)
    assert reader.texts("td") == [
        *("0.912", "1,000", "1.5e-07", "7219474a", "—"),
        *("—", "20,000", "—", "12", "0.94 ± 0.01"),
    ]
    right = [cell.get("class") == "number" for cell in reader.all("th")[:6]]
    assert right == [False, True, True, True, False, True]
    assert [cell["scope"] for cell in reader.all("th")] == ["col"] * 6 + ["row"] * 2
    assert [cell.get("class") for cell in reader.all("td")[:5]] == ["number"] * 3 + [
        None,
        "number",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "1,024",
        "-0.5",
        "+.5",
        "2e-05",
        "84%",
        "3.2 s",
        "0.94 ± 0.01",
        "0.9 [0.8, 1]",
        "2026-01-02 03:04",
        "—",
    ],
)
def test_what_is_a_number(text):
    assert page.is_number(text)


@pytest.mark.parametrize(
    "text", ["2.6.6", "2.14.1+cu130", "digits", "1 of 3 runs", "7219474a", "-"]
)
def test_what_is_none(text):
    assert not page.is_number(text)


def test_a_table_refuses_rows_and_formats_that_do_not_fit():
    with pytest.raises(ValueError, match=r"has 1 cells for 2 columns \(a, b\)"):
        Table(["a", "b"], [["one"]])
    with pytest.raises(ValueError, match="formats for c, but the columns are a, b"):
        Table(["a", "b"], [], formats={"c": ".3f"})


def test_pictures_are_inside_the_page_at_their_size(tmp_path):
    file = tmp_path / "line.png"
    small_figure().savefig(file, dpi=120)
    reader = written(tmp_path, Picture(small_figure(), "A line."), Picture(file, "It again."))
    drawn, read = reader.all("img")
    assert (drawn["width"], drawn["height"]) == (read["width"], read["height"]) == ("120", "60")
    data = base64.b64decode(read["src"].removeprefix("data:image/png;base64,"))
    assert data == file.read_bytes()
    data = base64.b64decode(drawn["src"].removeprefix("data:image/png;base64,"))
    assert struct.unpack(">II", data[16:24]) == (240, 120)  # for fine screens


def test_a_picture_needs_words_and_a_png(tmp_path):
    with pytest.raises(ValueError, match="set alt"):
        Picture(small_figure(), " ")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a PNG"):
        written(tmp_path, Picture(text, "No picture."))


def test_the_same_page_is_the_same_file(tmp_path):
    first, second = (
        write_page(tmp_path / name, "A page", [Picture(small_figure(), "A line.")]).read_bytes()
        for name in ("first.html", "second.html")
    )
    assert first == second


def test_a_page_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    path = write_page(tmp_path / "new" / "page.html", "Old", [])
    before = path.read_text("utf-8")

    def full(self, text, encoding):
        self.write_bytes(text.encode(encoding)[:50])
        raise OSError("No space left on device")

    monkeypatch.setattr(page.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_page(path, "New", [])
    assert path.read_text("utf-8") == before
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
