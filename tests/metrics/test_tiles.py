import pytest
import torch
from distances import distances, normal
from torch.testing import assert_close

from robustguide.metrics import tiles
from robustguide.metrics.neighbours import balls
from robustguide.metrics.tables import Held


@pytest.mark.parametrize("d", [3, 64, 2048])
def test_tiles_err_by_less_than_their_bound_and_the_bound_is_small(d):
    x, y = normal(150, d) * 3 + 50, normal(120, d, seed=1) * 3 + 50
    frame = tiles.Frame(*(tiles.summary(Held(z), "x") for z in (x, y)), device=x.device)
    tile = frame.tile(frame.place(x), frame.place(y))
    assert (
        (tile.values - distances(x, y)).abs().max() <= tile.slack <= 5e-4 * distances(x, y).max()
    )
    fine = frame.finer(x, y)
    assert (fine.values - distances(x, y)).abs().max() <= fine.slack <= 1e-8 * tile.slack


def test_equal_distances_are_equal_numbers_in_any_company():
    x, y = normal(40, 37), normal(40, 37, seed=1)
    found = tiles.squared_distance(x, y)
    assert torch.equal(tiles.squared_distance(y, x), found)
    assert torch.equal(
        torch.cat([tiles.squared_distance(x[i : i + 1], y[i : i + 1]) for i in range(40)]), found
    )
    assert_close(found, ((x.double() - y.double()) ** 2).sum(1), rtol=1e-14, atol=0)


def test_a_caller_s_precision_changes_nothing():
    """On CPUs with bfloat16 units "medium" rounds products to three digits, and autocast too."""
    samples, real = normal(300, 300), normal(256, 300, seed=1)
    want = balls(Held(samples), Held(real), 3, inclusive=True)
    exact = samples.double() @ real.double().T
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            found = balls(Held(samples), Held(real), 3, inclusive=True)
            assert torch.equal(found.around, want.around)
            assert torch.equal(found.recalled, want.recalled)
            with tiles.full_products(samples.device):
                assert (samples @ real.T - exact).abs().max() < 1e-4
                assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
