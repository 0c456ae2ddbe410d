"""A survey from real small samples: the page shows what the key tells."""

import base64
import io
import json

import numpy as np
import pytest
import surveys
import torch
from PIL import Image

from robustguide.survey import Key, Wanted, build
from robustguide.survey.page import as_block


def made(tmp_path, *methods, out="survey.html", how=None, **wanted):
    sets = {name: surveys.Seen(10 * place, **(how or {})) for place, name in enumerate(methods)}
    return build(sets, tmp_path / out, Wanted(**wanted)), sets


def decoded(url):
    """Pixels (h, w) of an image inside the page."""
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_page_shows_what_the_key_tells(tmp_path):
    found, sets = made(tmp_path, "a", "b", "c", pairs=12, checks=4)
    key = Key.load(tmp_path / "survey.key.json")
    told = surveys.content_of(found.page)
    assert key == found.key and told["survey"] == key.survey and found.equal == 0
    assert [each["id"] for each in told["questions"]] == [each.id for each in key.questions]
    by_seed = {
        name: dict(zip(samples.seed.tolist(), samples.pixels[:, 0].numpy(), strict=True))
        for name, samples in sets.items()
    }
    noises = []
    for question, shown in zip(key.questions, told["questions"], strict=True):
        assert shown["prompt"] == f"Which image shows “{question.class_name}” better?"
        for side, method in (("left", question.left), ("right", question.right)):
            pixels = decoded(shown[side])
            if method is None:
                noises.append(pixels)
            else:
                assert np.array_equal(pixels, by_seed[method][question.seed])
    noise = np.stack(noises).astype(float)
    assert len(noise) == 4 and not np.array_equal(noise[0], noise[1])
    assert noise.mean() == pytest.approx(127.5, abs=15)  # 256 bytes: four times 74 / 16
    assert noise.std() == pytest.approx(73.9, abs=12)


def test_the_page_does_not_tell_the_methods(tmp_path):
    found, _ = made(tmp_path, "method-one", "method-two", pairs=4)
    text = found.page.read_text()
    assert "method-one" not in text and "method-two" not in text and "memory" not in text
    assert surveys.content_of(found.page).keys() == {"survey", "title", "ties", "questions"}
    assert surveys.content_of(found.page)["questions"][0].keys() == {
        "id",
        "prompt",
        "left",
        "right",
    }


def test_the_same_arguments_make_the_same_survey(tmp_path):
    pages = [
        made(tmp_path, "a", "b", out=f"{place}.html", pairs=6, seed=seed)[0]
        for place, seed in enumerate([3, 3, 4])
    ]
    one, two, other = [each.page.read_bytes() for each in pages]
    assert one == two != other
    assert pages[0].key == pages[1].key and pages[0].key.survey != pages[2].key.survey


@pytest.mark.parametrize(
    ("change", "is_same"),
    [({"scale": 3}, True), ({"title": "T"}, False), ({"question": "Q"}, False)],
)
def test_the_digest_is_of_what_is_asked(tmp_path, change, is_same):
    one = made(tmp_path, "a", "b", out="1.html", pairs=2)[0].key.survey
    two = made(tmp_path, "a", "b", out="2.html", pairs=2, **change)[0].key.survey
    assert (one == two) == is_same


@pytest.mark.parametrize(
    ("shape", "scale", "style"),
    [
        ((1, 8, 8), None, "--width: 256px; --rendering: pixelated"),
        ((3, 28, 20), None, "--width: 200px; --rendering: pixelated"),
        ((3, 256, 256), None, "--width: 256px; --rendering: auto"),
        ((1, 8, 8), 5, "--width: 40px; --rendering: pixelated"),
    ],
)
def test_small_images_are_large(tmp_path, shape, scale, style):
    found, _ = made(tmp_path, "a", "b", how={"shape": shape, "count": 3}, pairs=1, scale=scale)
    assert style in found.page.read_text()


def test_questions_with_and_without_a_class(tmp_path):
    found, _ = made(tmp_path, "a", "b", pairs=2, checks=0, question="A {class}? {0}")
    names = [each.class_name for each in found.key.questions]
    prompts = [each["prompt"] for each in surveys.content_of(found.page)["questions"]]
    assert prompts == [f"A {name}? {{0}}" for name in names]
    sets = {name: surveys.Seen(place) for place, name in enumerate("ab")}
    for samples in sets.values():
        samples.y = None
    plain = build(sets, tmp_path / "2.html", Wanted(pairs=2))
    assert surveys.content_of(plain.page)["questions"][0]["prompt"] == "Which is better?"
    with pytest.raises(ValueError, match="have no classes"):
        build(sets, tmp_path / "3.html", Wanted(pairs=2, question="A {class}?"))
    assert not list(tmp_path.glob("*3*"))


def test_equal_images_are_counted(tmp_path):
    sets = {name: surveys.Seen(0) for name in "ab"}
    sets["b"].pixels[sets["b"].y == 0] ^= 1
    found = build(sets, tmp_path / "1.html", Wanted(pairs=6))
    assert found.equal == 4  # of three classes, one differs


def test_nothing_is_overwritten(tmp_path):
    found, sets = made(tmp_path, "a", "b", pairs=2)
    for path in (found.page, found.key_path):
        with pytest.raises(FileExistsError, match="answers may be on their way"):
            build(sets, found.page, Wanted(pairs=2))
        path.unlink()
    build(sets, found.page, Wanted(pairs=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["survey.html", "survey.key.json"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"pairs": 0}, "--pairs is 0"),
        ({"checks": -1}, "--checks is -1"),
        ({"scale": 0}, "--scale is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"title": " "}, "--title is empty"),
        ({"question": ""}, "--question is empty"),
    ],
)
def test_wishes_that_make_no_sense(wanted, message):
    with pytest.raises(ValueError, match=message):
        Wanted(**wanted)


def test_one_set_is_none(tmp_path):
    with pytest.raises(ValueError, match="two or more sets of samples, got 1"):
        build({"a": surveys.Seen(0)}, tmp_path / "1.html", Wanted())
    with pytest.raises(ValueError, match=r"ends in \.html"):
        build({"a": surveys.Seen(0), "b": surveys.Seen(1)}, tmp_path / "1.json", Wanted())


def test_no_text_ends_the_data_block():
    text = as_block({"class": surveys.HOSTILE, "more": "\u2029"})
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert json.loads(text) == {"class": surveys.HOSTILE, "more": "\u2029"}


def test_a_hostile_title_and_class_are_text(tmp_path):
    names = (surveys.HOSTILE, "dog", "fox")
    found, _ = made(tmp_path, "a", "b", how={"names": names}, pairs=3, title=surveys.HOSTILE)
    text = found.page.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<img src=x" not in text
    told = surveys.content_of(found.page)
    assert told["title"] == surveys.HOSTILE
    assert any(surveys.HOSTILE in each["prompt"] for each in told["questions"])
    assert torch.equal(surveys.Seen(0).seed, surveys.Seen(5).seed)  # or sets would not match
