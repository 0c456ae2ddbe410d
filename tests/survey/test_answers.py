"""Files of answers: what the page writes is read, all else is set aside with a reason."""

import json
import os

import numpy as np
import pytest
import surveys

from robustguide.survey import Answer, gather, read_answers
from robustguide.survey.answers import plain

KEY = surveys.key_of(checks=2)
ALL_A = surveys.for_method("a")


def test_what_the_page_writes_is_read(tmp_path):
    path = surveys.written(tmp_path / "1.json", surveys.document(KEY, ALL_A, 7, 1234))
    found = read_answers(path, KEY)
    assert found.rater == f"{7:032x}" and len(found.given) == 14
    assert found.given[KEY.questions[0].id] == Answer("left", 1234)
    assert found.given[KEY.questions[2].id].choice == "left"
    assert found.failed(KEY) == 0


def test_answers_may_be_missing_but_a_missing_check_is_failed(tmp_path):
    def choose(question):
        return None if question.seed == 1 else ALL_A(question)

    path = surveys.written(tmp_path / "1.json", surveys.document(KEY, choose))
    found = read_answers(path, KEY)
    assert len(found.given) == 12 and found.failed(KEY) == 1


def test_a_tie_fails_a_check(tmp_path):
    told = surveys.document(KEY, lambda question: "tie")
    assert read_answers(surveys.written(tmp_path / "1.json", told), KEY).failed(KEY) == 2


def hostile(**changes):
    return {**surveys.document(KEY, ALL_A), **changes}


def row(**changes):
    told = surveys.document(KEY, ALL_A)
    told["answers"][3] |= changes
    return told


TWICE = surveys.document(KEY, ALL_A)
TWICE["answers"].append(TWICE["answers"][0])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (hostile(survey="6" * 64), "another survey"),
        (hostile(survey=None), "another survey"),
        (hostile(survey=["5" * 64]), "another survey"),
        (hostile(rater="\x1b[2Jyou"), "32 hexadecimal digits"),
        (hostile(rater="A" * 32), "32 hexadecimal digits"),
        (hostile(rater="0" * 32 + "\n"), "32 hexadecimal digits"),
        (hostile(rater=5), "32 hexadecimal digits"),
        (hostile(answers={}), "no list"),
        (hostile(answers=[]), "no answers"),
        (hostile(answers=[1]), "id, answer and ms"),
        (hostile(name="me"), "nothing else"),
        ([], "nothing else"),
        (None, "nothing else"),
        (row(comment="x"), "nothing else"),
        (row(id="f" * 16), "was not asked"),
        (row(id=["0"]), "was not asked"),
        (row(id={}), "was not asked"),
        (row(answer="a"), "expected left, right, tie"),
        (row(answer=["left"]), "expected left, right, tie"),
        (row(answer="\x1b]0;title\x07"), r"'\\\\x1b|'\\x1b|\?"),
        (row(ms=-1), "whole number of ms"),
        (row(ms=1.5), "whole number of ms"),
        (row(ms=True), "whole number of ms"),
        (row(ms="5"), "whole number of ms"),
        (row(ms=10**10), "whole number of ms"),
        (TWICE, "twice"),
    ],
)
def test_what_the_page_does_not_write_is_refused(tmp_path, told, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_answers(surveys.written(tmp_path / "1.json", told), KEY)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 6000, "no JSON"),
        (b'{"survey": NaN}', "NaN is no number"),
        (b'{"survey": 1, "survey": 2}', "one name twice"),
        (b"9" * 5000, "no JSON"),
        (b'"\\ud800"', "nothing else"),
        (b" " * 9000, "larger than 7,680 bytes"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    (tmp_path / "1.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_answers(tmp_path / "1.json", KEY)
    assert str(raised.value).isprintable()


def test_changed_bytes_are_answers_or_refused(tmp_path):
    """Whatever a stranger changes: answers of this survey or a reason, and nothing else."""
    content = json.dumps(surveys.document(KEY, ALL_A)).encode()
    random, refused = np.random.default_rng(0), 0
    for _ in range(400):
        changed = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 4)):
            end = place + random.integers(0, 9)
            changed[place:end] = random.bytes(int(random.integers(0, 5)))
        (tmp_path / "1.json").write_bytes(changed)
        try:
            found = read_answers(tmp_path / "1.json", KEY)
        except ValueError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            assert found.given.keys() <= KEY.by_id.keys()
    assert refused > 350


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "nothing"):
        with pytest.raises(ValueError, match="no such file"):
            read_answers(tmp_path / name, KEY)


def test_a_survey_without_ties(tmp_path):
    key = surveys.key_of(has_ties=False)
    told = surveys.document(key, lambda question: "tie")
    with pytest.raises(ValueError, match=r"expected left, right$"):
        read_answers(surveys.written(tmp_path / "1.json", told), key)


def test_each_rater_counts_once(tmp_path):
    files = {
        "one": surveys.document(KEY, ALL_A, 1),
        "copy": surveys.document(KEY, ALL_A, 1),
        "two": surveys.document(KEY, ALL_A, 2),
        "other": surveys.document(KEY, surveys.for_method("b"), 2),
        "three": surveys.document(KEY, ALL_A, 3),
        "bad\x1b[31m": {},
    }
    paths = [surveys.written(tmp_path / name, told) for name, told in files.items()]
    found = gather([*paths, tmp_path / "missing"], KEY)
    assert [int(each.rater, 16) for each in found.raters] == [1, 3]
    assert [name.rsplit("/")[-1] for name in found.repeated] == ["copy"]
    aside = {each.file.rsplit("/")[-1]: each.reason for each in found.set_aside}
    assert list(aside) == ["bad?[31m", "missing", "two", "other"]
    assert "other answers in another file" in aside["two"] == aside["other"]


def test_plain_text():
    assert plain("a\x1b[2J\n\u202eb\ud800ü") == "a?[2J??b?ü"
    assert plain("x" * 50, 10) == "xxxxxxx..." and plain("x" * 10, 10) == "x" * 10


def test_everything_that_is_written_is_json(tmp_path):
    """The limit leaves room for the longest answers that the page writes."""
    told = surveys.document(KEY, lambda question: "right", ms=10**9)
    assert len(json.dumps(told, indent=1)) < 4096 + 128 * len(KEY.questions)
