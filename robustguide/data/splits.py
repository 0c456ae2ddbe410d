"""Fixed splits: who is in which one follows from a hash, not from a library's random numbers.

So a split is the same with every version of every library, on every machine.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

SPLITS = ("train", "validation", "test")


def chance(key: object, seed: int = 0) -> float:
    """A number in [0, 1) that is fixed by the key's text and the seed."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def hold_out(
    rows: Iterable[int], labels: Sequence[int], fraction: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Rows kept and rows held out, both ascending; of each class the same fraction is held out.

    Args:
        rows: Row numbers to be divided.
        labels: Class of every row, by row number.
        fraction: Fraction of each class that is held out, rounded to whole rows.
        seed: Another seed is another division.
    """
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        by_class[labels[row]].append(row)
    kept, held = [], []
    for members in by_class.values():
        members.sort(key=lambda row: chance(row, seed))
        count = round(fraction * len(members))
        held += members[:count]
        kept += members[count:]
    return sorted(kept), sorted(held)


def split_of(key: str, test: float = 0.1, validation: float = 0.1) -> str:
    """The split of a file, by its name alone: a folder that grows moves no file to another."""
    place = chance(key)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"
