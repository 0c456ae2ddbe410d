"""`robustguide report` on real runs, as a reader meets the page."""

import json
import os
import re
from pathlib import Path

import pytest
import reported
import tiny
from browsing import browser, page
from markup import Reader

from robustguide.__main__ import main

DARK = {"color_scheme": "dark"}
WINDOWS = {"phone": (390, {}), "desk": (1400, {}), "phone_dark": (390, DARK), "dark": (1400, DARK)}
SCREENSHOTS = os.environ.get("ROBUSTGUIDE_SCREENSHOTS")  # a folder that keeps them


def report(*words):
    return main(["report", *map(str, words)])


def test_the_page_is_written_and_told(tmp_path, capsys):
    reported.leave(tmp_path / "runs/a", reported.generation(), {0: 1})
    cut = tmp_path / "runs/cut"
    cut.mkdir()
    (cut / "results.json").write_text('{"run": ')
    out = tmp_path / "page.html"
    assert report(tmp_path / "runs", "--out", out, "--title", "A title") == 0
    told = capsys.readouterr()
    reader = Reader(out.read_text())
    assert re.match(rf"Report: {out}, 2 runs, {len(reader.all('img'))} figures, ", told.out)
    assert told.err.startswith("cut: results.json cannot be read (")
    assert reader.texts("title") == ["A title"]


def test_without_a_run_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no results\.json"):
        report(tmp_path, "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_help_has_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as stopped:
        report("--help")
    told = capsys.readouterr().out
    assert not stopped.value.code
    assert "robustguide report runs/demo\n" in told and "exit code: 0" in told


def callbacks(runs):
    judge = tiny.loaded("classifier", runs / "classifier/classifier.safetensors")
    features = {"name": "tiny_features", "network": judge}
    extractor = tiny.spec("metrics.ClassifierFeatures", **features)
    return [
        tiny.spec("callbacks.Quality", extractor=extractor),
        tiny.spec("callbacks.TrajectoryCalibration", resamples=50),
        tiny.spec("callbacks.SampleGrid", count=8),
        tiny.spec("callbacks.Frames", count=1, steps=4),
    ]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    """Runs of a classifier's test and of sampling, unguided and guided by two scales."""
    made = tmp_path_factory.mktemp("reported")
    path = runs / "classifier/classifier.safetensors"
    for name, scale in (("unguided", None), ("weak", 1.0), ("strong", 4.0)):
        config = tiny.generation(
            runs / "denoiser/denoiser.safetensors",
            callbacks=callbacks(runs),
            sampler=tiny.ancestral(5),
            observer=tiny.loaded("classifier", path),
            **({} if scale is None else {"guidance": {"plain": tiny.guided(path, scale)}}),
        )
        reference = {"data": {"init_args": {"reference": tiny.spec("data.Digits")}}}
        tiny.run(made / name, "test", tiny.merged(config, reference))
    model = tiny.spec(
        "modules.ReportCard",
        classifier=tiny.loaded("classifier", path),
        levels=[0.1, 1.0],
        attacks=[tiny.pgd()],
    )
    tiny.run(made / "tested", "test", tiny.merged(tiny.TRAINING, {"model": model}))
    return made


def test_every_section_of_real_runs_and_their_numbers(folder, tmp_path, json_of):
    out = tmp_path / "page.html"
    report(folder, "--out", out)
    reader = Reader(out.read_text())
    anchors = [each["id"] for each in reader.all("h2")]
    assert anchors == [
        *("runs", "metrics", "seeds", "curves", "reliability", "cost", "trajectories"),
        "provenance",
    ]
    # grid, two kinds of curves, four diagrams, cost, three ways
    assert len(reader.all("img")) == 1 + 2 + 4 + 1 + 3
    cells = " ".join(reader.texts("td"))
    for name in ("unguided", "weak", "strong", "tested"):
        for told in json_of(folder / name)["metrics"].values():
            assert f"{told['value']:.4g}" in cells
    assert "plain (ClassifierGuidance) scale 4" in cells and "robustguide fit" not in cells


@pytest.mark.check
def test_a_reader_finds_everything(folder, tmp_path):
    """In a real browser, by keyboard, on a phone and at a desk, by day and by night."""
    out = tmp_path / "page.html"
    report(folder, "--out", out)
    shots = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    with browser() as opened:
        for name, (width, context) in WINDOWS.items():
            with page(opened, out, width, **context) as shown:
                assert shown.locator("main img").count() == 11
                shown.screenshot(path=shots / f"report_{name}.png", full_page=True)
        with page(opened, out) as shown:
            links = shown.locator("a")
            for index in range(links.count()):
                target = links.nth(index).get_attribute("href")
                assert shown.locator(f"h2{target}").count() == 1
            shown.keyboard.press("Tab")
            reached = [shown.evaluate("document.activeElement.textContent")]
            assert reached == ["Skip to What was run"]
            style = "getComputedStyle(document.activeElement).outlineStyle"
            assert shown.evaluate(style) == "solid"
            for _ in range(links.count() - 1):
                shown.keyboard.press("Tab")
                reached.append(shown.evaluate("document.activeElement.textContent"))
            assert reached[1:] == shown.locator("nav a").all_text_contents()
            shown.keyboard.press("Enter")
            assert shown.url.endswith("#provenance")
            assert shown.evaluate("scrollY") > 500
            shown.keyboard.press("Tab")
            shown.keyboard.press("Enter")  # a folded listing opens without a script
            assert shown.locator("details[open]").count() == 1


def test_pages_of_hostile_class_names_are_quiet(tmp_path):
    names = ["<script>alert(1)</script>", "$\\frac$", "_"]
    data = {"data": {"init_args": {"class_names": names}}}
    written = reported.generation(run={"config": data})
    reported.leave(tmp_path / "runs/<script>alert(2)<", written, {0: 1})
    assert report(tmp_path / "runs", "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert json.dumps(names[1]) in text.replace("&quot;", '"')
