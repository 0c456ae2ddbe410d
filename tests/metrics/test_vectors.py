"""Norms and cosines of rows of any size."""

import math

import pytest
import torch

from robustguide.metrics.vectors import cosines, lengths


def test_norms_and_cosines_of_small_and_missing_gradients():
    values = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [1.0, 1.0], [3e30, 4e30]])
    torch.testing.assert_close(lengths(values) / torch.tensor([1e-30, 1, 1, 1e30]),
                               torch.tensor([5.0, 0.0, math.sqrt(2), 5.0]))  # fmt: skip
    direction = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-1e-37, 0.0]])
    found = cosines(values, direction)
    assert found[[0, 1, 3]].tolist() == pytest.approx([0.6, 0.0, -0.6], abs=1e-6)
    assert found[2].isnan() and cosines(values, None).isnan().all()
