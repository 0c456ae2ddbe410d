"""Small surveys, their keys and answers, for tests."""

import json
import re

import numpy as np
from sampled import Held

from robustguide.data.generated import write_samples
from robustguide.survey import Key, Method, Question

HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028& [bold]"


class Seen(Held):
    """Samples of a method: the same seeds and classes in all, other pixels in each."""

    def __init__(self, shift, count=24, names=("cat", "dog", "tree frog"), shape=(1, 8, 8)):
        super().__init__(count, shape, made={"method": f"shift {shift}"})
        self.pixels = (self.pixels // 2 + shift).byte()
        self.class_names = list(names)


def sets(folder, *shifts, **how):
    """Writes a set a shift as .npz, and names them."""
    for shift in shifts:
        write_samples(Seen(shift, **how), folder / f"m{shift}.npz")
    return [str(folder / f"m{shift}.npz") for shift in shifts]


def key_of(methods=("a", "b"), count=12, checks=0, has_ties=True, classes=("x", "y")):
    """A key whose questions go round the pairs of methods and change sides in every round."""
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    questions = []
    for place in range(count):
        a, b = pairs[place % len(pairs)]
        left, right = (a, b) if place // len(pairs) % 2 == 0 else (b, a)
        name = classes[place // len(pairs) % len(classes)]
        questions.append(Question(f"{place:016x}", left, right, place, name))
    for place in range(checks):
        sides = (methods[0], None) if place % 2 else (None, methods[0])
        questions.append(Question(f"c{place:015x}", *sides, place, classes[0]))
    told = tuple(Method(name, f"runs/{name}", {}) for name in methods)
    return Key("5" * 64, "A title", "Which?", has_ties, 0, told, tuple(questions))


def document(key, choose, rater=1, ms=1500):
    """A file of answers, as the page makes it.

    Args:
        key: Of the survey.
        choose: Gives the choice to a question; null leaves it out.
        rater: A number, of which the id is made.
        ms: Time of each answer.
    """
    rows = [(each.id, choose(each)) for each in key.questions]
    answers = [{"id": own, "answer": told, "ms": ms} for own, told in rows if told is not None]
    return {"survey": key.survey, "rater": f"{rater:032x}", "answers": answers}


def written(path, told):
    """As JSON, the way that the page indents it."""
    path.write_text(json.dumps(told, indent=1))
    return path


def for_method(name):
    """Chooses a method wherever it is, and otherwise the side that is no noise, or the left."""

    def choose(question):
        if question.is_check:
            return question.known
        return "right" if question.right == name else "left"

    return choose


def at_random(seed, chances=(0.5, 0.4, 0.1)):
    """Chooses left, right or tie with these chances; checks are always right."""
    random = np.random.default_rng(seed)

    def choose(question):
        drawn = str(random.choice(["left", "right", "tie"], p=chances))
        return question.known if question.is_check else drawn

    return choose


def content_of(page):
    """What the data block of a page holds."""
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(block)
