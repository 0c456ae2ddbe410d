import pytest
import torch
from distances import dense_radii, normal
from golden_files import load
from torch.testing import assert_close

from robustguide.metrics import radii as module
from robustguide.metrics import tiles
from robustguide.metrics.radii import radii
from robustguide.metrics.tables import Held


@pytest.fixture
def small(monkeypatch):
    """Blocks of some ten rows, so that a hundred rows make many tiles."""
    monkeypatch.setattr(tiles, "ROWS", 13)


GOLDENS = [("gauss", 3), ("gauss", 5), ("grid_ties", 3), ("grid_ties", 4)]


@pytest.mark.parametrize(("case", "k"), GOLDENS)
def test_radii_of_dgm_eval(case, k, small):
    _, tensors = load("prdc")
    found = radii(Held(tensors[f"in.prdc.{case}.real"]), k).sqrt().float()
    assert_close(found, tensors[f"out.prdc.{case}.k{k}.real_radii"], rtol=1e-5, atol=1e-5)


def test_equal_rows_are_neighbours_at_distance_zero(small):
    rows = torch.cat([normal(1).repeat(4, 1), normal(30, seed=1)])
    assert (radii(Held(rows), 3)[:4] == 0).all() and (radii(Held(rows), 3)[4:] > 0).all()
    assert (radii(Held(rows), 4)[:4] > 0).all()
    assert (radii(Held(rows[:1].repeat(200, 1)), 5) == 0).all()


@pytest.mark.parametrize("spare", [1, 4, 100])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_neighbours_that_rounding_confuses_are_told_apart(spare, scale, monkeypatch, small):
    """At 1e-4 the distances are of the size of the bound for rows of norm 30."""
    rows = normal(100) * scale
    rows[::2] += 30
    monkeypatch.setattr(module, "SPARE", spare)
    calls = []
    again = module._Nearest._again
    monkeypatch.setattr(module._Nearest, "_again", lambda *a: calls.append(len(a[2])) or again(*a))
    for k in (1, 4, 30):
        assert_close(radii(Held(rows), k), dense_radii(rows, k), rtol=1e-13, atol=0)
    if scale < 1:
        assert bool(calls) == (spare < 100)  # with 100, no row can have been dropped


def test_one_row_more_than_neighbours_is_enough(small):
    rows = normal(16)
    assert_close(radii(Held(rows), 15), dense_radii(rows, 15), rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match=r"Got 16 rows of the table and k=16.*at least 17 images"):
        radii(Held(rows), 16)
