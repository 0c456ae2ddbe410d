import pytest
import torch

from robustguide.metrics.means import finite_blocks, mean_and_replicates
from robustguide.metrics.tables import Held


def test_replicates_are_means_of_the_rest():
    values, groups = torch.tensor([1.0, 2, 3, 10]), torch.tensor([2, 0, 0, 1])
    assert mean_and_replicates(values, groups) == (4, (5.5, 2, 5))
    assert mean_and_replicates(values, torch.zeros(4, dtype=torch.long)) == (4, ())


def test_rows_that_are_not_finite_are_told_with_their_block():
    features = torch.zeros(25, 2)
    features[13, 1], features[17], features[24, 0] = torch.nan, torch.inf, torch.nan
    blocks = finite_blocks(Held(features), "samples", 10)
    assert next(blocks)[0] == slice(0, 10)
    with pytest.raises(ValueError, match=r"2 of the rows 10 to 19 of the samples .* not finite"):
        next(blocks)
