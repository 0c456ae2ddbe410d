"""Which pairs are asked about: balanced over methods, classes and sides, in random order."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from robustguide.survey.key import Question


def draw(
    methods: Sequence[str],
    classes: Mapping[int, str | None],
    count: int,
    checks: int,
    random: np.random.Generator,
) -> tuple[Question, ...]:
    """Draws the questions of a survey.

    Each pair of methods is asked about equally often. Within a pair, and over all, the numbers of
    any two classes differ by at most one, no seed comes twice within a pair, and each method of a
    pair is at the left in half of the questions (give or take one).

    Args:
        methods: Names, at least two.
        classes: Of each seed that all methods have.
        count: Questions about methods, a multiple of the number of their pairs.
        checks: Attention checks, in which one side is noise.
        random: Draws classes, seeds, sides, order and ids.

    Raises:
        ValueError: If the count does not fit, or a class has too few seeds.
    """
    pairs = list(combinations(methods, 2))
    each = per_pair(count, len(pairs))
    seeds = Dealer(classes, random)
    asked: list[tuple[str | None, str | None, int]] = []
    for a, b in pairs:
        sides = random.permutation(each) % 2 == 0
        for seed, is_first in zip(seeds.deal(each, f"{a} and {b}"), sides, strict=True):
            asked.append((a, b, seed) if is_first else (b, a, seed))
    sides = random.permutation(checks) % 2 == 0
    for place, is_first in enumerate(sides):
        method, seed = methods[place % len(methods)], int(random.choice(sorted(classes)))
        asked.append((method, None, seed) if is_first else (None, method, seed))
    shuffled = [asked[row] for row in random.permutation(len(asked))]
    return tuple(
        Question(random.bytes(8).hex(), left, right, seed, classes[seed])
        for left, right, seed in shuffled
    )


def per_pair(count: int, pairs: int) -> int:
    """Questions about each pair of methods.

    Raises:
        ValueError: If they cannot be equally many.
    """
    if count < 1 or count % pairs:
        below, above = count // pairs * pairs, (count // pairs + 1) * pairs
        near = f"{below} or {above}" if below > 0 else f"{above}"
        raise ValueError(
            f"{count} questions cannot be shared equally by {pairs} pairs of methods; give "
            f"--pairs {near}."
        )
    return count // pairs


class Dealer:
    """Deals seeds class by class, in random order, beginning again only when all were dealt.

    Args:
        classes: Of each seed.
        random: Draws the order.
    """

    def __init__(self, classes: Mapping[int, str | None], random: np.random.Generator) -> None:
        names = list(dict.fromkeys(classes.values()))
        self.seeds: dict[str | None, list[int]] = {name: [] for name in names}
        for seed in random.permutation(sorted(classes)).tolist():
            self.seeds[classes[seed]].append(seed)
        self.order = [names[place] for place in random.permutation(len(names))]
        self.turns = self._turns()

    def deal(self, count: int, pair: str) -> list[int]:
        """The seeds of one pair of methods, no two of them equal.

        Raises:
            ValueError: If a class has too few.
        """
        dealt = [next(self.turns) for _ in range(count)]
        for name, number in Counter(name for name, _ in dealt).items():
            if number > len(self.seeds[name]):
                of_class = "" if name is None else f" of class {name!r}"
                raise ValueError(
                    f"The pair {pair} needs {number} seeds{of_class}, but there are "
                    f"{len(self.seeds[name])}; ask fewer --pairs, or give more samples."
                )
        return [seed for _, seed in dealt]

    def _turns(self) -> Iterator[tuple[str | None, int]]:
        """Class after class: any number of turns in a row is balanced."""
        turn = 0
        while True:
            for name in self.order:
                seeds = self.seeds[name]
                yield name, seeds[turn % len(seeds)]
            turn += 1
