"""The key's file: the same after reading, and nothing else is taken for one."""

import json

import pytest
import surveys

from robustguide.survey import Key


def test_a_key_is_read_as_it_was_written(tmp_path):
    key = surveys.key_of(("a", "b", surveys.HOSTILE), checks=2)
    key.save(tmp_path / "key.json")
    assert Key.load(tmp_path / "key.json") == key
    assert [each.known for each in key.checks] == ["right", "left"]


def changed(told, **changes):
    return {**told, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: changed(told, format=2), "expected format 1"),
        (lambda told: changed(told, more=1), "unexpected keyword"),
        (lambda told: changed(told, methods=told["methods"][:1]), "two or more methods"),
        (lambda told: changed(told, questions=told["questions"][:1] * 2), "an id of its own"),
        (lambda told: changed(told, questions=[]), "an id of its own"),
        (lambda told: [told], "is no key"),
        (lambda told: {"survey": "5"}, "is no key"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path, change, message):
    surveys.key_of().save(tmp_path / "key.json")
    told = json.loads((tmp_path / "key.json").read_text())
    (tmp_path / "key.json").write_text(json.dumps(change(told)))
    with pytest.raises(ValueError, match=message):
        Key.load(tmp_path / "key.json")


def test_a_question_about_one_method(tmp_path):
    surveys.key_of().save(tmp_path / "key.json")
    told = json.loads((tmp_path / "key.json").read_text())
    told["questions"][0]["right"] = told["questions"][0]["left"]
    (tmp_path / "key.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="about two methods"):
        Key.load(tmp_path / "key.json")
