"""Which pairs are drawn: balanced over methods, classes and sides."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from robustguide.survey.questions import draw

CLASSES = {100 + seed: "xyz"[seed % 3] for seed in range(30)}


def drawn(methods="ab", classes=CLASSES, count=12, checks=0, seed=0):
    return draw(list(methods), classes, count, checks, np.random.default_rng(seed))


def spread(counts):
    return max(counts) - min(counts)


@pytest.mark.parametrize(("methods", "count"), [("ab", 7), ("abc", 15), ("abcd", 48)])
def test_pairs_classes_and_sides_are_balanced(methods, count):
    found = drawn(methods, count=count)
    pairs = [frozenset(pair) for pair in combinations(methods, 2)]
    by_pair = {pair: [q for q in found if {q.left, q.right} == pair] for pair in pairs}
    assert sum(map(len, by_pair.values())) == len(found) == count
    assert {len(rows) for rows in by_pair.values()} == {count // len(pairs)}
    for pair, rows in by_pair.items():
        assert len({row.seed for row in rows}) == len(rows)
        assert abs(2 * sum(row.left == min(pair) for row in rows) - len(rows)) <= 1
        assert spread([Counter(row.class_name for row in rows)[name] for name in "xyz"]) <= 1
    assert spread(Counter(row.class_name for row in found).values()) <= 1
    assert all(CLASSES[row.seed] == row.class_name for row in found)
    assert len({row.id for row in found}) == count


def test_seeds_are_shared_evenly_before_any_comes_again():
    assert {row.seed for row in drawn("abc", count=30)} == set(CLASSES)
    assert set(Counter(row.seed for row in drawn("abc", count=60)).values()) == {2}


def test_checks_have_noise_at_either_side():
    found = [row for row in drawn("abc", count=3, checks=6) if row.is_check]
    assert Counter(row.known for row in found) == {"left": 3, "right": 3}
    assert all((row.left is None) == (row.known == "right") for row in found)
    assert Counter(row.left or row.right for row in found) == dict.fromkeys("abc", 2)


def test_order_is_random_and_comes_from_the_seed():
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    found = drawn("abc", count=90, classes=dict.fromkeys(range(30)), checks=30)
    first = found[:60]  # in order of drawing, they would all be of the first two pairs
    assert 5 <= sum({row.left, row.right} == {"b", "c"} for row in first) <= 25
    assert 8 <= sum(row.is_check for row in first) <= 25
    assert {row.class_name for row in found} == {None}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"methods": "abc", "count": 10}, "--pairs 9 or 12"),
        ({"methods": "abc", "count": 2}, "give --pairs 3"),
        ({"count": 0}, "0 questions"),
        ({"count": 33}, r"a and b needs 11 seeds of class '[xyz]', but there are 10"),
        ({"count": 31, "classes": dict.fromkeys(range(30))}, "needs 31 seeds, but"),
    ],
)
def test_what_cannot_be_balanced_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        drawn(**how)
