"""The page in a real Chromium: answered by keys, mouse and finger, and scored."""

import base64
import hashlib
import json
import re

import pytest
import surveys
from browsing import browser, page
from PIL import Image

from robustguide.__main__ import main
from robustguide.survey import Wanted, build

KEYS = {"left": ["ArrowLeft", "1"], "right": ["ArrowRight", "2"], "tie": ["0"]}
PAUSE = 220  # ms: what comes faster is a double click


@pytest.fixture(scope="module")
def opened():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A survey of two methods with checks and ties, of images of a few pixels."""
    folder = tmp_path_factory.mktemp("survey")
    sets = {name: surveys.Seen(40 * place) for place, name in enumerate(("one", "two"))}
    return build(sets, folder / "survey.html", Wanted(pairs=8, checks=2, has_ties=True))


def test_the_policy_allows_one_script_and_one_style(made):
    text = made.page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (source,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == []


def rater(key, likes, other=None):
    """Prefers a method, or another one in the first three questions; every fourth is a tie."""
    asked = [each for each in key.questions if not each.is_check]

    def choose(question):
        if question in asked[3::4]:
            return "tie"
        return surveys.for_method(other if other and question in asked[:3] else likes)(question)

    return choose


def current(shown):
    """Place of the question that is shown, whose images must be on their sides."""
    place = int(re.match(r"Question (\d+) of", shown.inner_text("#count"))[1]) - 1
    told = shown.evaluate("JSON.parse(document.getElementById('data').textContent)")["questions"]
    for side in ("left", "right"):
        assert shown.get_attribute(f"#{side} img", "src") == told[place][side]
    return place


def by_keys(shown, key, choose, upto):
    """Answers by the keyboard, each key of a choice in turn."""
    while shown.is_visible("#asking") and current(shown) < upto:
        place = current(shown)
        names = KEYS[choose(key.questions[place])]
        shown.wait_for_timeout(PAUSE)
        shown.keyboard.press(names[place % len(names)])


def by_mouse(shown, key, choose, upto, act="click"):
    """Answers by clicks or taps."""
    while shown.is_visible("#asking") and current(shown) < upto:
        target = f"#{choose(key.questions[current(shown)])}"
        shown.wait_for_timeout(PAUSE)
        getattr(shown, act)(target)


def downloaded(shown, path, press):
    with shown.expect_download() as caught:
        press()
    caught.value.save_as(path)
    assert re.fullmatch(r"answers-[0-9a-f]{8}\.json", caught.value.suggested_filename)
    return path


def chosen(path):
    told = json.loads(path.read_text())
    assert told.keys() == {"survey", "rater", "answers"}
    assert all(row.keys() == {"id", "answer", "ms"} for row in told["answers"])
    assert all(PAUSE <= row["ms"] < 60_000 for row in told["answers"])
    return {row["id"]: row["answer"] for row in told["answers"]}


def expected(key, choose):
    return {each.id: choose(each) for each in key.questions}


@pytest.mark.check
def test_two_raters_answer_and_are_scored(opened, made, tmp_path, capsys):
    key, one, two = made.key, rater(made.key, "one"), rater(made.key, "one", "two")
    with page(opened, made.page) as shown:
        shown.keyboard.press("Enter")  # the button that begins has the focus
        by_keys(shown, key, one, 5)
        shown.reload()
        assert current(shown) == 5
        shown.keyboard.press("Backspace")
        shown.keyboard.press("Backspace")
        assert current(shown) == 3
        pressed = [shown.get_attribute(f"#{x}", "aria-pressed") for x in ("left", "right", "tie")]
        assert pressed == [str(x == one(key.questions[3])).lower() for x in KEYS]
        shown.wait_for_timeout(PAUSE)
        shown.keyboard.press("2")  # is taken back
        shown.keyboard.press("Backspace")
        by_keys(shown, key, one, 10)
        assert shown.is_visible("#end")
        first = downloaded(shown, tmp_path / "1.json", lambda: shown.keyboard.press("Enter"))
        assert json.loads(shown.input_value("#text")) == json.loads(first.read_text())
    with page(opened, made.page) as shown:
        shown.click("#start")
        by_mouse(shown, key, two, 4)
        shown.reload()
        shown.click("#back")
        assert current(shown) == 3
        by_mouse(shown, key, two, 10)
        shown.reload()
        second = downloaded(shown, tmp_path / "2.json", lambda: shown.click("#download"))
    assert chosen(first) == expected(key, one) and chosen(second) == expected(key, two)
    words = ["survey", "score", str(made.key_path), str(first), str(second)]
    assert main([*words, f"--out={tmp_path}/score.json"]) == 0
    told = json.loads((tmp_path / "score.json").read_text())
    (pair,) = told["pairs"]
    assert (pair["won"], pair["tied"], pair["lost"]) == (9, 4, 3) and pair["rate"] == 11 / 16
    assert [row["failed"] for row in told["raters"]] == [0, 0]
    assert "one over two" in capsys.readouterr().out


@pytest.mark.check
def test_without_storage_and_a_second_person(opened, made, tmp_path):
    key = made.key
    forbid = "Object.defineProperty(window, 'localStorage', {get() {throw new Error('no');}})"
    with page(opened, made.page) as shown:
        shown.add_init_script(forbid)
        shown.reload()
        files = []
        for name in ("one", "two"):
            assert shown.is_visible("#intro")
            shown.click("#start")
            by_keys(shown, key, rater(key, name), 10)
            files.append(downloaded(shown, tmp_path / name, lambda: shown.keyboard.press("Enter")))
            shown.click("#next")
    assert [chosen(file) for file in files] == [
        expected(key, rater(key, name)) for name in ("one", "two")
    ]
    assert len({json.loads(file.read_text())["rater"] for file in files}) == 2


@pytest.mark.check
def test_stored_rubbish_is_not_believed(opened, made):
    states = ["{", "null", '{"rater": "x", "place": 3, "answers": {}}']
    states += [json.dumps({"rater": "0" * 32, "place": place, "answers": {}}) for place in (2, 99)]
    with page(opened, made.page) as shown:
        for state in states:
            name = f"robustguide-survey-{made.key.survey}"
            shown.evaluate("([name, state]) => localStorage.setItem(name, state)", [name, state])
            shown.reload()
            assert shown.is_visible("#intro") and not shown.is_visible("#asking")


@pytest.mark.check
def test_keys_that_are_no_answers(opened, made):
    with page(opened, made.page) as shown:
        shown.keyboard.press("1")  # on the first page it means nothing
        assert shown.is_visible("#intro")
        shown.click("#start")
        shown.wait_for_timeout(PAUSE)
        for pressed in ("Control+ArrowRight", "Alt+2", "a", "3", "Backspace"):
            shown.keyboard.press(pressed)
        assert current(shown) == 0
        shown.keyboard.down("2")
        for _ in range(5):  # a key that is held
            shown.wait_for_timeout(PAUSE)
            shown.keyboard.down("2")
        shown.keyboard.up("2")
        assert current(shown) == 1
        shown.wait_for_timeout(PAUSE)
        shown.dblclick("#left")
        assert current(shown) == 2


@pytest.mark.check
def test_a_survey_without_ties_offers_none(opened, tmp_path):
    sets = {name: surveys.Seen(place) for place, name in enumerate("ab")}
    made = build(sets, tmp_path / "survey.html", Wanted(pairs=2, checks=0))
    with page(opened, made.page) as shown:
        assert "No difference" not in shown.inner_text("main")
        shown.click("#start")
        shown.wait_for_timeout(PAUSE)
        shown.keyboard.press("0")
        assert current(shown) == 0 and not shown.is_visible("#tie")


@pytest.mark.check
def test_a_hostile_class_does_nothing(opened, tmp_path):
    sets = {
        name: surveys.Seen(place, names=[surveys.HOSTILE] * 3) for place, name in enumerate("ab")
    }
    wanted = Wanted(pairs=2, checks=0, title=surveys.HOSTILE, question="Is it {class}?")
    made, dialogs = build(sets, tmp_path / "survey.html", wanted), []
    with page(opened, made.page) as shown:
        shown.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        shown.reload()
        assert shown.text_content("h1") == surveys.HOSTILE == shown.title()
        shown.click("#start")
        assert shown.text_content("#prompt") == f"Is it {surveys.HOSTILE}?"
        assert shown.evaluate("document.images.length") == 2
        assert shown.evaluate("document.scripts.length") == 2
    assert not dialogs


@pytest.mark.check
def test_the_policy_stops_another_script(opened, made, tmp_path):
    text = made.page.read_text()
    bad = "<script>document.title = 'mine'</script><img src=x onerror='document.title = 1'></main>"
    (tmp_path / "bad.html").write_text(text.replace("</main>", bad))
    shown = opened.new_page()
    try:
        shown.goto((tmp_path / "bad.html").as_uri())
        assert shown.title() == made.key.title and shown.is_visible("#start")
    finally:
        shown.close()


def screenshots(shown, key, folder, name):
    """Of the three faces of the page; the two answers must be visible at once and large enough."""
    shown.screenshot(path=folder / f"{name}-intro.png")
    shown.click("#start")
    shown.screenshot(path=folder / f"{name}-asking.png")
    size = shown.viewport_size
    for side in ("left", "right", "tie", "back"):
        box = shown.locator(f"#{side}").bounding_box()
        assert box["height"] >= 44 and box["width"] >= 44
        assert 0 <= box["x"] and box["x"] + box["width"] <= size["width"]
        assert 0 <= box["y"] and box["y"] + box["height"] <= size["height"]
    act = "tap" if size["width"] < 500 else "click"
    by_mouse(shown, key, rater(key, "one"), 10, act)
    downloaded(shown, folder / "answers.json", lambda: getattr(shown, act)("#download"))
    assert shown.is_visible("#next")
    shown.screenshot(path=folder / f"{name}-end.png")


@pytest.mark.check
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_on_a_phone_and_in_the_dark(opened, made, tmp_path, width, scheme):
    phone = {"has_touch": True, "is_mobile": True} if width < 500 else {}
    with page(opened, made.page, width, 844, color_scheme=scheme, **phone) as shown:
        screenshots(shown, made.key, tmp_path, f"{width}-{scheme}")
        light = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (scheme == "light")
    with Image.open(tmp_path / f"{width}-{scheme}-asking.png") as image:
        assert image.width == width
