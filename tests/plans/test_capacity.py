"""How many rows have room: exact, in few trials, and nothing is held afterwards."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from robustguide.plans.capacity import has_room, is_of_memory, largest


class Narrow(nn.Module):
    """A network on a device with memory for so many rows."""

    def __init__(self, rows, error):
        super().__init__()
        self.layer, self.rows, self.error = nn.Linear(3, 3), rows, error
        self.held, self.asked = [], []

    def forward(self, x):
        h = self.layer(x)
        self.held.append(weakref.ref(h))
        self.asked.append(len(x))
        if len(x) > self.rows:
            raise type(self.error)(*self.error.args)  # a new one, which holds no frame yet
        return h


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize(
    ("rows", "error"),
    [*((rows, ERRORS[0]) for rows in (0, 1, 13)), *((2, error) for error in ERRORS[1:])],
)
def test_the_largest_batch_that_a_network_has_memory_for(rows, error):
    net = Narrow(rows, error)

    def run(batch):
        assert not any(reference() is not None for reference in net.held)
        net(torch.ones(batch, 3)).square().sum().backward()

    assert largest(has_room(run)) == rows
    assert len(net.asked) <= 2 * math.log2(rows + 1) + 2
    assert len(set(net.asked)) == len(net.asked)
    gc.collect()
    assert not any(reference() is not None for reference in net.held)


@pytest.mark.parametrize("at_most", [1, 2, 3, 31, 32, 33])
def test_a_bound_is_not_exceeded(at_most):
    for fitting in range(40):
        asked = []

        def fits(rows, asked=asked, fitting=fitting):
            asked.append(rows)
            return rows <= fitting

        assert largest(fits, at_most) == min(fitting, at_most)
        assert max(asked) <= at_most


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shapes differ")])
def test_other_errors_are_handed_on(error):
    with pytest.raises(type(error), match=str(error)):
        has_room(lambda rows: Narrow(0, error)(torch.ones(rows, 3)))(1)
    assert not is_of_memory(error)


def test_the_allocator_of_the_cpu():
    """What it really says; no machine has an exbibyte."""
    assert not has_room(lambda rows: torch.empty(rows, 2**60, dtype=torch.int8))(1)
