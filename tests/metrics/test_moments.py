import numpy as np
import pytest
import torch
from torch.testing import assert_close

from robustguide.metrics.frechet import Target
from robustguide.metrics.moments import Moments, Sums
from robustguide.metrics.tables import BLOCK, Filed, Held


def features(n, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(n, dim, generator=generator) @ mixing


@pytest.mark.parametrize(("n", "dim"), [(90, 6), (40, 64), (700, 600)])
def test_merged_shards_in_any_order_equal_one_pass(n, dim):
    rows = features(n, dim).double() + 30
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    shards = torch.tensor_split(rows[order], [0, 1, 2, n // 3])  # an empty one, two of one row
    parts = [Moments.of(shard) for shard in shards]
    whole = Moments.of(rows)
    for merged in (Moments.merge(*parts), Moments.merge(parts[4], Moments.merge(*parts[:4]))):
        assert merged.count == n
        assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
        scale = whole.covariance.abs().max().item()
        assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-12 * scale)
        for reference in (features(3 * n, dim, seed=1), features(n // 3, dim, seed=1)):
            target = Target(Moments.of(reference.double() + 30))
            assert target.distance(merged) == pytest.approx(target.distance(whole), rel=1e-8)


def test_merging_needs_counts_and_one_dimension():
    known, other = Moments.of(features(20)), Moments.of(features(20, dim=4))
    with pytest.raises(ValueError, match=r"\[4, 6\] features"):
        Moments.merge(known, other)
    with pytest.raises(ValueError, match=r"from \[20, None\] images"):
        Moments.merge(known, Moments(None, known.mean, known.covariance))


def test_moments_of_a_file_are_those_of_memory_and_no_row_is_read_twice(tmp_path):
    rows = features(2 * BLOCK + 77, 4) + 1000
    (tmp_path / "rows").write_bytes(rows.numpy().astype(np.float32).tobytes())
    asked = []

    class Watched(Filed):
        def block(self, first, last):
            asked.append((first, last))
            return super().block(first, last)

    filed = Moments.of(Watched(tmp_path / "rows", len(rows), 4))
    assert asked == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, len(rows))]
    centred = rows.double() - rows.double().mean(0)
    want = centred.T @ centred / (len(rows) - 1)
    assert_close(filed.mean, rows.double().mean(0), rtol=1e-14, atol=0)
    assert_close(filed.covariance, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(Moments.of(Held(rows)).covariance, filed.covariance)


def test_sums_of_groups_add_to_the_whole_and_come_off_again():
    rows = features(90).double() + 30
    whole, part, rest = (Sums.near(rows[:10]) for _ in range(3))
    part.add(rows[:25])
    rest.add(rows[25:])
    whole += part
    whole += rest
    for sums, left in ((whole, rows), (whole - part, rows[25:]), (whole - rest, rows[:25])):
        want = Moments.of(left)
        found = sums.moments()
        assert found.count == len(left)
        assert_close(found.mean, want.mean, rtol=1e-13, atol=0)
        assert_close(found.covariance, want.covariance, rtol=1e-12, atol=1e-12)
