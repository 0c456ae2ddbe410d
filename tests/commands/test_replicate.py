"""A plan of two cells, run by processes of their own, judged and written into a page."""

import json
import re

import pytest
import tiny
import yaml

from robustguide.__main__ import main

PAGE = "# Mine\n\nOf mine.\n\n<!-- tables -->\nold\n<!-- end of tables -->\n\nThe end.\n"
PLANNED = {
    "configs": ".",
    "base": ["base"],
    "count": 10,
    "blocks": 3,
    "cells": {"unguided": {}, "guided": {"configs": ["guided"]}},
    "tables": {
        "one": {
            "title": "Guided or not",
            "source": "Nobody (2020)",
            "found": "that it helps",
            "note": "Tiny networks tell nothing.",
            "cells": ["unguided", "guided"],
            "claims": ["class_accuracy: guided > unguided"],
        }
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plan with its configurations and networks."""
    place = tmp_path_factory.mktemp("replication")
    denoiser = tiny.exported(place / "denoiser.safetensors", tiny.denoiser())
    classifier = tiny.exported(place / "classifier.safetensors", tiny.classifier())
    judge = tiny.spec("callbacks.ClassAccuracy", judge=tiny.classifier())
    grid = tiny.spec("callbacks.SampleGrid", count=10)
    base = tiny.generation(denoiser, callbacks=[judge, grid])
    base["trainer"]["logger"] = False
    guidance = {"guided": tiny.guided(classifier)}
    configs = {"base": base, "guided": {"model": {"init_args": {"guidance": guidance}}}}
    for name, said in (configs | {"plan": PLANNED}).items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(said))
    (place / "page.md").write_text(PAGE)
    return place


@pytest.fixture
def replicate(folder, monkeypatch, capsys):
    """Runs the command on that plan; its exit code and what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words, place="runs"):
        code = main(["replicate", "--plan=plan.yaml", f"--folder={place}", *words])
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("word", "code", "lines"),
    [
        ("--list", 0, r"one +Guided or not\. Nobody \(2020\)\n"),
        ("--judge", 1, r"0 of 6 runs have results\n.*guided > unguided +not measured.*"),
        ("--cost", 0, r"0 of 6 runs have results\nabout \d+\.\d hours of sampling are left, .*"),
    ],
)
def test_who_only_looks_leaves_nothing(replicate, folder, word, code, lines):
    ended, printed = replicate(word, place="nothing")
    assert ended == code and re.fullmatch(lines, printed, re.DOTALL)
    assert not (folder / "nothing").exists()


def test_more_hours_than_allowed_are_refused(replicate, folder):
    with pytest.raises(ValueError, match=r"more than --hours=0; give a larger bound, or fewer"):
        replicate("--hours=0", place="nothing")
    assert not (folder / "nothing").exists()


@pytest.mark.check
def test_cells_run_once_and_the_page_says_what_they_measured(replicate, folder):
    code, printed = replicate("--page=page.md")
    assert code == 0 and "0 of 6 runs" in printed and "Page: page.md" in printed
    page = (folder / "page.md").read_text()
    assert page.startswith("# Mine\n\nOf mine.\n") and page.endswith("\n\nThe end.\n")
    assert "old" not in page and "Tiny networks tell nothing." in page
    values = []
    for cell in PLANNED["cells"]:
        files = [folder / f"runs/{cell}/block_{block}/results.json" for block in range(3)]
        found = [json.loads(file.read_text())["metrics"]["class_accuracy"] for file in files]
        assert [one["n"] for one in found] == [10] * 3
        values.append([one["value"] for one in found])
    for cell, each in zip(PLANNED["cells"], values, strict=True):
        row = next(line for line in page.splitlines() if line.startswith(f"| {cell} |"))
        assert f"{sum(each) / 3:.3f}" in row
    assert "images/replication_one.png" in page
    assert (folder / "images/replication_one.png").stat().st_size > 1000
    (folder / "runs/guided/block_2/results.json").unlink()
    kept = (folder / "runs/guided/block_1/results.json").stat().st_mtime_ns
    code, printed = replicate("--page=page.md")
    assert code == 0 and "5 of 6 runs" in printed
    assert (folder / "page.md").read_text() == page
    assert (folder / "runs/guided/block_1/results.json").stat().st_mtime_ns == kept
