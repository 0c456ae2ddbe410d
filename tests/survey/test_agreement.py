"""Krippendorff's alpha, against his example and against its definition by pairs of values."""

from itertools import permutations

import numpy as np
import pytest

from robustguide.survey.agreement import krippendorff

# Krippendorff (2011), Computing Krippendorff's alpha-reliability: four observers of
# twelve units, 0 where a value is missing
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def by_definition(units):
    """Mean disagreement within units, against that of all pairs of pairable values."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    n = len(values)
    within = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    return 1 - (within / n) / (sum(a != b for a, b in permutations(values, 2)) / (n * (n - 1)))


def test_the_published_example():
    units = [[value for value in unit if value] for unit in zip(*PUBLISHED, strict=True)]
    assert krippendorff(units) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_definition(seed):
    random = np.random.default_rng(seed)
    units = [
        random.choice(["left", "right", "tie"], random.integers(0, 6)).tolist() for _ in range(20)
    ]
    assert krippendorff(units) == pytest.approx(by_definition(units), abs=1e-12)


def test_ends():
    assert krippendorff([["a", "a"], ["b", "b", "b"]]) == 1
    assert krippendorff([["a", "b"], ["b", "a"]]) == pytest.approx(-0.5)  # n = 4: 1 - 3 * 4 / 8
    assert krippendorff([["a", "a"], ["a", "a"]]) is None
    assert krippendorff([["a"], ["b"], []]) is None
