"""`robustguide survey`, through the door of the command line."""

import json

import pytest
import surveys

from robustguide.__main__ import main
from robustguide.survey import Key


@pytest.fixture
def built(tmp_path, capsys):
    """A survey of three methods, its key, and what was printed."""
    paths = surveys.sets(tmp_path, 0, 30, 60)
    words = [f"--out={tmp_path}/survey.html", "--pairs=9", "--checks=2", "--ties", "--seed=5"]
    assert main(["survey", "build", *paths, *words]) == 0
    return Key.load(tmp_path / "survey.key.json"), capsys.readouterr().out


def test_building_says_what_it_made(built, tmp_path):
    key, shown = built
    assert key.names == ["m0", "m30", "m60"] and key.has_ties and key.seed == 5
    assert len(key.questions) == 11 and len(key.checks) == 2
    assert key.methods[1].path.endswith("m30.npz") and key.methods[1].made["method"] == "shift 30"
    assert f"Page: {tmp_path}/survey.html" in shown and "to be kept" in shown
    assert "9 questions and 2 attention checks about m0, m30, m60" in shown


def test_answers_are_scored(built, tmp_path, capsys):
    key, _ = built
    folder = tmp_path / "answers"
    folder.mkdir()
    for place in range(3):
        surveys.written(
            folder / f"{place}.json", surveys.document(key, surveys.at_random(place), place)
        )
    surveys.written(folder / "m0.json", surveys.document(key, surveys.for_method("m0"), 8))
    surveys.written(folder / "lazy.json", surveys.document(key, lambda question: "tie", 9))
    (folder / "bad\x1b[31m.json").write_text("{}")
    files = map(str, sorted(folder.iterdir()))
    words = ["survey", "score", f"{tmp_path}/survey.key.json", *files]
    assert main([*words, f"--out={tmp_path}/score.json", "--margin=0.1"]) == 0
    printed = capsys.readouterr().out
    shown = " ".join(printed.split())
    told = json.loads((tmp_path / "score.json").read_text())
    assert [row["answers"] for row in told["pairs"]] == [12, 12, 12]
    assert "m0 over m30" in shown and "tree frog" in shown and "strength" in shown
    assert "bad?[31m.json:" in printed.replace("\n", "") and "\x1b" not in shown
    assert "1 of 5 raters failed more than 0 of 2 attention checks" in shown
    assert f"{told['agreement']['alpha']:.3f} over 9 questions and 4 raters" in shown
    assert "194 independent answers" in shown


def test_names_and_first_samples(tmp_path, capsys):
    paths = surveys.sets(tmp_path, 0, 1)
    words = ["survey", "build", *paths, "--names", "a [b]", "c", f"--out={tmp_path}/s.html"]
    assert main([*words, "--pairs=4", "--n=4"]) == 0
    key = Key.load(tmp_path / "s.key.json")
    seeds = {each.seed for each in key.questions}
    assert key.names == ["a [b]", "c"] and len(seeds) <= 4
    surveys.written(tmp_path / "1.json", surveys.document(key, surveys.for_method("c")))
    capsys.readouterr()
    assert main(["survey", "score", f"{tmp_path}/s.key.json", f"{tmp_path}/1.json"]) == 0
    assert "a [b] over c" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "a"], "1 names for 2 sets"),
        (["--names", "a", "a"], "called 'a'"),
        (["--pairs=25"], "needs 9 seeds of class"),
        (["--n=30"], "the first 30 cannot be taken"),
    ],
)
def test_what_cannot_be_built(tmp_path, words, message):
    paths = surveys.sets(tmp_path, 0, 1)
    with pytest.raises(ValueError, match=message):
        main(["survey", "build", *paths, f"--out={tmp_path}/s.html", *words])
    assert not (tmp_path / "s.html").exists()


def test_a_key_that_is_none(tmp_path):
    (tmp_path / "key.json").write_text("[]")
    with pytest.raises(ValueError, match="is no key of a survey"):
        main(["survey", "score", f"{tmp_path}/key.json", "x"])
    with pytest.raises(FileNotFoundError):
        main(["survey", "score", f"{tmp_path}/nothing.json", "x"])


@pytest.mark.parametrize("action", ["build", "score"])
def test_help_has_examples_and_exit_codes(action, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["survey", action, "--help"])
    shown = capsys.readouterr().out
    assert not stopped.value.code and f"robustguide survey {action} " in shown
    assert "exit code: 0 when" in shown
