import json

import pytest
import torch
from golden_files import load
from torch.testing import assert_close
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kernel_mmd, kid_features_to_metric

from robustguide.metrics import kernel
from robustguide.metrics.extractor import Identity
from robustguide.metrics.jackknife import Jackknife, groups_of
from robustguide.metrics.kernel import Kid, polynomial_mmd
from robustguide.metrics.protocol import Sampled
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Filed, Held


def normal(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def sampled(features, groups=4):
    return Sampled({"pool3": Held(features)}, torch.arange(len(features)) % groups)


def reference(features):
    identity = Identity("net", "digest", "none")
    return Reference("clean", identity, Provenance("data"), {}, {"pool3": Held(features)})


def literal(x, y):
    """MMD^2 pair by pair."""
    x, y = x.double(), y.double()

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


def test_kid_of_the_golden_and_of_torch_fidelity_on_the_same_subsets():
    description, tensors = load("metrics")
    x, y = tensors["in.kid.features_1"], tensors["in.kid.features_2"]
    first, second = (tensors[f"out.kid.subset10_indices_{i}"] for i in (1, 2))
    found = [polynomial_mmd(x[i], y[j]) for i, j in zip(first, second, strict=True)]
    mean = sum(found) / len(found)
    told = description["kid"]
    want = told["subsets10_size50_seed2020"]["mean"]
    assert mean == pytest.approx(want, rel=1e-4, abs=1e-6)
    theirs = kid_features_to_metric(
        x.double(), y.double(), kid_subsets=10, kid_subset_size=50, rng_seed=2020, verbose=False
    )
    assert mean == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-10)
    whole = polynomial_mmd(x[:80], y)
    assert whole == pytest.approx(told["no_subsets_first80_unbiased"], rel=1e-4, abs=1e-6)
    wide = kernel_mmd(x[:80].double().numpy(), y.double().numpy())
    assert whole == pytest.approx(float(wide), abs=1e-10)


def test_sets_of_two_sizes_agree_with_the_definition(monkeypatch):
    monkeypatch.setattr(kernel, "ROWS", 4)
    x, y = normal(9), normal(14, seed=1) + 0.3
    assert polynomial_mmd(x, y) == pytest.approx(literal(x, y), rel=1e-12)
    assert polynomial_mmd(y, x) == pytest.approx(polynomial_mmd(x, y), rel=1e-12)


def test_for_one_feature_it_is_a_sum_over_moments():
    """(x y + 1)^3 is the inner product of 1, x, x^2, x^3 with weights 1, 3, 3, 1."""
    x, y = normal(3000, 1), 2 * normal(2000, 1, seed=1)
    want = 0.0
    for power, weight in enumerate((1, 3, 3, 1)):
        first, second = x.double() ** power, y.double() ** power
        pairs = [
            (float(z.sum()) ** 2 - float((z**2).sum())) / (len(z) * (len(z) - 1))
            for z in (first, second)
        ]
        want += weight * (sum(pairs) - 2 * float(first.mean() * second.mean()))
    assert polynomial_mmd(x, y) == pytest.approx(want, rel=1e-11)
    assert want == pytest.approx(3 * (1 - 4) ** 2, rel=0.2)  # E x^2 = 1 and E y^2 = 4


def test_it_is_unbiased_where_both_sets_have_one_law():
    found = torch.tensor(
        [polynomial_mmd(normal(20, seed=2 * i), normal(30, seed=2 * i + 1)) for i in range(200)]
    )
    assert abs(found.mean()) < 3 * found.std() / 200**0.5
    assert (found < 0).any()


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_parts_and_files_change_nothing(size, monkeypatch, tmp_path):
    x, y = normal(70), normal(90, seed=1) * 1.2
    want = polynomial_mmd(x, y)
    monkeypatch.setattr(kernel, "ROWS", size)
    tables = []
    for name, features in (("x", x), ("y", y)):
        (tmp_path / name).write_bytes(features.numpy().tobytes())
        tables.append(Filed(tmp_path / name, *features.shape))
    assert polynomial_mmd(*tables) == pytest.approx(want, rel=1e-12)


def test_blocks_are_groups_where_these_are_large_enough():
    x, y = normal(80), normal(100, seed=1) * 1.3
    number = Kid(block=20).measure(sampled(x), reference(y))["kid"]
    dealt = groups_of(torch.arange(100), 4)
    blocks = [polynomial_mmd(x[g::4], y[dealt == g]) for g in range(4)]
    assert number.value == pytest.approx(sum(blocks) / 4, rel=1e-12)
    want = [(sum(blocks) - blocks[g]) / 3 for g in range(4)]
    assert number.replicates == pytest.approx(want, rel=1e-12)
    error = Jackknife(number.value, number.replicates).standard_error()
    assert number.facts["standard_error"] == pytest.approx(error, rel=1e-9)
    assert (number.facts["blocks"], number.facts["block_images"]) == (4, [20, 25])
    json.dumps(dict(number.facts))


def test_small_groups_share_blocks_and_leave_them_one_by_one():
    x, y = normal(80), normal(100, seed=1) * 1.3
    number = Kid(block=40).measure(sampled(x), reference(y))["kid"]
    dealt, groups = groups_of(torch.arange(100), 2), torch.arange(80) % 4
    real = [y[dealt == b] for b in range(2)]
    blocks = [polynomial_mmd(x[groups // 2 == b], real[b]) for b in range(2)]
    assert number.value == pytest.approx(sum(blocks) / 2, rel=1e-12)
    for g in range(4):
        rest = polynomial_mmd(x[groups == (g ^ 1)], real[g // 2])
        assert number.replicates[g] == pytest.approx((rest + blocks[1 - g // 2]) / 2, rel=1e-12)


def test_one_group_is_one_block_of_all_pairs():
    x, y = normal(30), normal(40, seed=1)
    number = Kid(block=30).measure(sampled(x, groups=1), reference(y))["kid"]
    assert number.value == pytest.approx(polynomial_mmd(x, y), rel=1e-12)
    assert number.replicates == () and number.facts["standard_error"] is None


def test_features_are_not_rounded_to_float32():
    x = 1e4 + normal(50)
    wide = kernel_mmd(x[:25].double().numpy(), x[25:].double().numpy())
    assert_close(torch.tensor(polynomial_mmd(x[:25], x[25:])), torch.tensor(wide).float())


def test_bad_input_is_refused_where_it_enters():
    x, holed = normal(30), normal(30)
    holed[3, 1] = torch.nan
    side = reference(x)
    with pytest.raises(
        ValueError, match=r"Got 30 samples and 30 real images, .* least 100 of each"
    ):
        Kid().measure(sampled(x), side)
    with pytest.raises(ValueError, match=r"samples have 7 features .* activations 8.*stats"):
        Kid(block=5).measure(sampled(normal(30, 7)), side)
    with pytest.raises(ValueError, match=r"1 of the rows .* of the samples .* not finite"):
        Kid(block=5).measure(sampled(holed), side)
    with pytest.raises(ValueError, match=r"of the reference's activations .* not finite"):
        Kid(block=5).measure(sampled(x), reference(holed))
    with pytest.raises(ValueError, match=r"none of layer 'pool3'; write one"):
        Kid(block=5).measure(sampled(x), None)
    with pytest.raises(ValueError, match=r"got 1 samples and 30 real images; give at least two"):
        polynomial_mmd(x[:1], x)
    with pytest.raises(ValueError, match="blocks of 1 images"):
        Kid(block=1)
