"""Samples in memory, for tests of what reads and writes them."""

import torch

from robustguide.data.generated import Bytes, Generated

MADE = {
    "method": "robust",
    "scale": {"robust": 6.0},
    "checkpoints": ["a" * 64, "b" * 64],
    "guides": ["b" * 64],
}


class Held(Generated):
    """Random bytes; numbers and seeds that are no places."""

    def __init__(self, count=7, shape=(3, 6, 5), labels=True, made=MADE):
        generator = torch.Generator().manual_seed(count)
        self.pixels = torch.randint(0, 256, (count, *shape), generator=generator).byte()
        self.index = 3 + 2 * torch.arange(count)
        self.seed = 10**12 + torch.randperm(count, generator=generator)
        self.y = torch.arange(count) % 3 if labels else None
        self.class_names = ["cat", "dog", "tree frog"] if labels else None
        self.path, self.count, self.shape = "memory", count, shape
        self.made = {"kind": "memory", **made}

    def batches(self, size):
        for first in range(0, self.count, size):
            rows = slice(first, first + size)
            y = None if self.y is None else self.y[rows]
            yield Bytes(self.pixels[rows], y, self.index[rows], self.seed[rows])


def together(samples, size=3):
    """Everything that a set holds."""
    parts = list(samples.batches(size))
    y = None if parts[0].y is None else torch.cat([part.y for part in parts])
    pixels, index, seed = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "index", "seed")
    )
    return Bytes(pixels, y, index, seed)


def assert_same(found, expected):
    """The same images, labels, numbers, seeds and facts, wherever they are."""
    assert (found.count, found.shape) == (expected.count, expected.shape)
    assert found.class_names == expected.class_names and found.facts() == expected.facts()
    one, two = together(found), together(expected, 100)
    for name in ("pixels", "index", "seed"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
        assert getattr(one, name).dtype == getattr(two, name).dtype
    assert (one.y is None) == (two.y is None)
    assert one.y is None or torch.equal(one.y, two.y)
    assert torch.equal(found.seeds(), two.seed)
