"""The page: what is there, what is left out, what is escaped, and the same bytes again."""

import pytest
import reported
import torch
from markup import Reader

from robustguide.report import sections
from robustguide.report.page import Paragraph, Picture
from robustguide.report.reading import read, read_all

HOSTILE = "<script>alert('x')</script> & $\\frac{1}$ _"


def page(path, runs, **given):
    sections.write_report(path, runs, **given)
    return Reader(path.read_text("utf-8"))


def anchors(runs):
    return [section.anchor for section in sections.sections(runs)]


def test_a_section_is_there_if_some_run_holds_its_data(tmp_path):
    bare = reported.leave(tmp_path / "bare", {"run": {}, "metrics": {}, "curves": {}, "cost": {}})
    assert anchors([read(bare)]) == ["runs"]
    tested = read(reported.leave(tmp_path / "tested", reported.classification()))
    assert anchors([tested]) == ["runs", "metrics", "curves", "provenance"]
    written = reported.generation(2.0)
    folder = reported.frames(reported.leave(tmp_path / "made", written, {0: 1}))
    made = read(folder)
    every = ["runs", "metrics", "seeds", "curves", "reliability", "trajectories", "provenance"]
    assert anchors([made]) == every
    again = read(reported.leave(tmp_path / "again", reported.generation()))
    assert anchors([made, again]) == [*every[:5], "cost", *every[5:]]
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "results.json").write_text('{"run"')
    assert anchors([read(cut)]) == ["runs", "notes"]


def test_the_page_has_the_facts_of_the_runs(tmp_path):
    guidance = {"robust": reported.scaled(6.0)}
    reported.leave(tmp_path / "a", reported.generation(1.5, guidance=guidance))
    reported.leave(tmp_path / "b", reported.generation(2.5))
    reader = page(tmp_path / "page.html", read_all([tmp_path]), title="Two")
    assert reader.texts("title") == ["Two"]
    assert reader.texts("p")[0] == (
        "2 runs: 2 test of Generation. The lowest FD-1000@toy of 2 is that of a: 1.5 [1, 2]."
    )
    row = reader.texts("td")[:10]
    assert row == [
        *("test", "robust", "robust (ClassifierGuidance) scale 6", "Ancestral, 50 steps"),
        *("1,000", "0 to 999", "12.2", "2026-01-02 03:04", "0.1.0", "01234567"),
    ]
    listed = reader.texts("pre")
    assert "robustguide test --config" in listed[0] and "aa" * 32 in listed[0]
    assert reader.texts("summary") == ["What these numbers are", "a", "b"]


def test_figures_are_cut_at_eight_and_the_others_told(tmp_path):
    for index in range(10):
        folder = reported.leave(tmp_path / f"run{index}", reported.generation(), {0: index})
        reported.frames(folder)
    runs = read_all([tmp_path])
    for section in sections.sections(runs):
        pictures = [block for block in section.blocks if isinstance(block, Picture)]
        assert len(pictures) <= 8
        if section.anchor in ("trajectories", "reliability"):
            assert len(pictures) == 8 and isinstance(section.blocks[-1], Paragraph)
            text = section.blocks[-1].text
            assert text.startswith("2 figures more") and "run8" in text and "run9" in text
            assert "run7" not in text


def test_every_link_leads_somewhere_and_nothing_runs(tmp_path):
    reported.frames(reported.leave(tmp_path / "a", reported.generation(), {0: 1}))
    reader = page(tmp_path / "page.html", read_all([tmp_path]))
    ids = [element["id"] for element in reader.elements if "id" in element]
    links = [element["href"].removeprefix("#") for element in reader.all("a")]
    assert len(set(ids)) == len(ids) and set(links) == set(ids)
    assert not reader.all("script")


def test_hostile_names_do_nothing(tmp_path):
    names = [HOSTILE, "$", "_hidden"]
    written = reported.generation(
        guidance={HOSTILE: reported.scaled(1.0)},
        metrics={HOSTILE: {"value": 1.0, "n": 5, "shown": HOSTILE, "warning": HOSTILE}},
        curves={HOSTILE: {"sigma": [1.0, 2.0], HOSTILE: [1.0, 2.0], "ece": [0.1, 0.2]}},
        run={"config": {"data": {"init_args": {"class_names": names}}}},
    )
    for name in ("$a_<b>", "_$", "ab\u4e2d\n"):
        reported.frames(reported.leave(tmp_path / name, written, {0: 1}))
    reader = page(tmp_path / "page.html", read_all([tmp_path]), title=HOSTILE)
    assert not reader.all("script") and reader.texts("h1") == [HOSTILE]
    assert HOSTILE in reader.texts("td") and any("$a_<b>" == text for text in reader.texts("th"))


def test_the_same_runs_are_the_same_bytes(tmp_path):
    for index, name in enumerate(("a", "b")):
        folder = reported.leave(tmp_path / "runs" / name, reported.generation(), {0: index, 1: 5})
        reported.frames(folder)
    pages = []
    for name in ("first.html", "second.html"):
        sections.write_report(tmp_path / name, read_all([tmp_path / "runs"]))
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.check
def test_twenty_runs_of_noisy_colour_images_stay_below_ten_megabytes(tmp_path):
    """Noise is what compresses least."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 256, 256), dtype=torch.uint8, generator=generator)
    index = {number: 0 for number in range(12)}
    for number in range(20):
        folder = tmp_path / f"run{number}"
        reported.leave(folder, reported.generation(1.0 + number), index, pixels=pixels)
        reported.frames(folder, steps=6, shape=(3, 128, 128), generator=generator)
    sections.write_report(tmp_path / "page.html", read_all([tmp_path]))
    assert (tmp_path / "page.html").stat().st_size < 10e6


def test_on_the_way_all_runs_show_the_same_seed(tmp_path):
    for name, seeds in (("a", (0, 4)), ("b", (4, 7))):
        reported.frames(reported.leave(tmp_path / name, reported.generation()), seeds)
    first, second = sections.trajectories(read_all([tmp_path]))
    assert "a, seed 4, label 1" in first.caption and "b, seed 4, label 1" in second.caption


def test_changed_code_and_typed_words_are_told(tmp_path):
    words = ["robustguide", "test", "--config", "a b.yaml", "--model.guidance={}"]
    told = {"run": {"git_dirty": True, "command": words}}
    reported.leave(tmp_path / "a", reported.generation(**told))
    reported.leave(tmp_path / "b", reported.generation(run={"git_dirty": False, "command": [3]}))
    reader = page(tmp_path / "page.html", read_all([tmp_path]))
    cells = reader.texts("td")
    assert cells.count("01234567, changed") == 1 and cells.count("01234567") == 1
    listed = reader.texts("pre")
    assert "# was typed: robustguide test --config 'a b.yaml' '--model.guidance={}'" in listed[0]
    assert "was typed" not in listed[1]
