import json

import pytest
import torch
from distances import dense_radii, distances, normal
from golden_files import load
from torch.testing import assert_close
from torch_fidelity.metric_prc import prc_features_to_metric

from robustguide.metrics import neighbours, tiles
from robustguide.metrics.extractor import Identity
from robustguide.metrics.neighbours import (
    DensityCoverage,
    Neighbours,
    PrecisionRecall,
    balls,
    realism,
)
from robustguide.metrics.protocol import Sampled
from robustguide.metrics.radii import radii
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Filed, Held


@pytest.fixture
def small(monkeypatch):
    """Blocks of some ten rows, so that a hundred rows make many tiles."""
    monkeypatch.setattr(tiles, "ROWS", 13)


def dense(samples, real, k, inclusive):
    """Precision, recall, density and coverage by their definitions."""
    between = distances(samples, real)
    compare = torch.le if inclusive else torch.lt
    of_real = compare(between, dense_radii(real, k)[None])
    of_samples = compare(between, dense_radii(samples, k)[:, None])
    return (
        of_real.any(1).double().mean().item(),
        of_samples.any(0).double().mean().item(),
        of_real.double().sum().item() / (k * len(samples)),
        of_real.any(0).double().mean().item(),
    )


def four(samples, real, k, inclusive):
    found = balls(Held(samples), Held(real), k, inclusive=inclusive)
    means = {n: x.mean().item() for n, x in (found.of_samples() | found.of_real()).items()}
    return tuple(means[name] for name in ("precision", "recall", "density", "coverage"))


def reference(features, layer="pool3"):
    identity = Identity("net", "digest", "none")
    return Reference("adm", identity, Provenance("data"), {}, {layer: Held(features)})


GOLDENS = [("gauss", 3), ("gauss", 5), ("grid_ties", 3), ("grid_ties", 4)]


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(("case", "k"), GOLDENS)
def test_the_four_numbers_of_dgm_eval_with_and_without_the_edge(case, k, inclusive, small):
    description, tensors = load("prdc")
    told = next(x for x in description["prdc"] if (x["case"], x["k"]) == (case, k))
    want = told["own_float64_non_strict" if inclusive else "own_float64_strict"]
    found = four(tensors[f"in.prdc.{case}.fake"], tensors[f"in.prdc.{case}.real"], k, inclusive)
    names = ("precision", "recall", "density", "coverage")
    assert found == pytest.approx([want[name] for name in names], abs=1e-12)
    if not inclusive:
        recorded = tensors[f"out.prdc.{case}.k{k}"]
        assert_close(torch.tensor(found, dtype=torch.float64), recorded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_realism_of_dgm_eval(k, small):
    _, tensors = load("prdc")
    real, fake = Held(tensors["in.prdc.gauss.real"]), tensors["in.prdc.gauss.fake"]
    found = realism(Held(fake), real, radii(real, k))
    want = tensors[f"out.prdc.gauss.k{k}.realism_without_last5"]
    assert_close(found[:-5].float(), want, rtol=1e-5, atol=1e-5)
    copied = (distances(fake, real.features) == 0).any(1)
    small_ball = radii(real, k) < radii(real, k).quantile(0.5)
    of_small = (distances(fake, real.features[small_ball]) == 0).any(1)
    assert copied.any() and torch.equal(found.isinf(), of_small)


def test_realism_without_a_small_ball_is_refused():
    _, tensors = load("prdc")
    grid = Held(tensors["in.prdc.grid_ties.real"])
    with pytest.raises(ValueError, match=r"All 64 radii .* no ball is small enough"):
        realism(grid, grid, radii(grid, 3))


def test_guided_diffusion_and_torch_fidelity_agree(small):
    description, tensors = load("metrics")
    samples, real = tensors["in.prc.samples"], tensors["in.prc.reference"]
    own = radii(Held(samples), 3), radii(Held(real), 3)
    assert_close(own[0], tensors["out.prc.radii2_samples"], rtol=1e-12, atol=0)
    assert_close(own[1], tensors["out.prc.radii2_reference"], rtol=1e-12, atol=0)
    precision, recall, *_ = four(samples, real, 3, True)
    told = description["precision_recall"]
    assert (precision, recall) == (told["precision"], told["recall"])
    theirs = prc_features_to_metric(
        samples, real, prc_neighborhood=3, prc_batch_size=50, save_cpu_ram=False, verbose=False
    )
    assert precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall == pytest.approx(theirs["recall"], abs=1e-6)


def copies():
    """Rows on a grid with many copies, and samples that copy real rows or one another."""
    generator = torch.Generator().manual_seed(1)
    real = torch.randint(3, (90, 3), generator=generator).float()
    return torch.cat([real[:20], real[:1].repeat(30, 1), normal(20, 3)]), real


def far_clusters():
    """Two clusters 1e4 apart, of size 1e-2: float32 products see nothing of them."""
    shift = torch.zeros(80, 6)
    shift[40:] = 1e4
    return normal(80, seed=1) * 1e-2 + shift, normal(80, seed=2) * 1e-2 + shift


def large():
    """Squares beyond float32."""
    return normal(60, seed=3) * 1e25, normal(70, seed=4) * 1e25


def minute():
    """Squares below float32."""
    return normal(60, seed=3) * 1e-30, normal(70, seed=4) * 1e-30


def wide():
    """Many features, far from the origin."""
    return normal(70, 300, 5) + 100, normal(60, 300, 6) + 100


HARD = [copies, far_clusters, large, minute, wide]


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("sets", HARD)
def test_every_decision_is_that_of_float64(sets, inclusive, small):
    samples, real = sets()
    for k in (1, 3, 20):
        assert_close(radii(Held(real), k), dense_radii(real, k), rtol=1e-13, atol=0)
        want = dense(samples, real, k, inclusive)
        assert four(samples, real, k, inclusive) == pytest.approx(want, abs=1e-14)


def test_a_bound_that_leaves_everything_open_changes_nothing(monkeypatch, small):
    samples, real = normal(50), normal(60, seed=1)
    want = four(samples, real, 3, True), radii(Held(real), 3)
    monkeypatch.setattr(tiles, "_slack", lambda x, y: 1e9)
    assert four(samples, real, 3, True) == want[0]
    assert torch.equal(radii(Held(real), 3), want[1])


@pytest.mark.parametrize("size", [9, 64, 1000])
def test_blocks_and_files_change_no_bit(size, monkeypatch, tmp_path):
    samples, real = normal(64), normal(71, seed=1)
    want = radii(Held(real), 5), balls(Held(samples), Held(real), 5, inclusive=False)
    files = []
    for name, table in (("samples", samples), ("real", real)):
        (tmp_path / name).write_bytes(table.numpy().tobytes())
        files.append(Filed(tmp_path / name, *table.shape))
    monkeypatch.setattr(tiles, "ROWS", size)
    found = balls(*files, 5, inclusive=False)
    assert torch.equal(radii(files[1], 5), want[0])
    assert torch.equal(found.around, want[1].around)
    assert torch.equal(found.covered, want[1].covered)
    assert torch.equal(found.recalled, want[1].recalled)


def test_a_set_covers_itself_and_far_sets_nothing(small):
    rows = normal(60)
    assert four(rows, rows, 3, True) == (1, 1, pytest.approx(60 * 4 / (3 * 60)), 1)
    assert four(rows, rows + 1e3, 3, True) == (0, 0, 0, 0)


def test_one_mode_of_two_is_precise_and_recalls_half(small):
    mode = normal(100)
    real = torch.cat([mode, normal(100, seed=1) + 50])
    precision, recall, _, coverage = four(mode, real, 3, True)
    assert (precision, recall, coverage) == (1, 0.5, 0.5)


def test_measures_give_values_replicates_and_facts(small):
    samples, real = normal(80), normal(90, seed=1) * 1.1
    groups = torch.arange(80) % 4
    sampled, real_side = Sampled({"pool3": Held(samples)}, groups), reference(real)
    both = Neighbours(k=3, inclusive=True).measure(sampled, real_side)
    found = balls(Held(samples), Held(real), 3, inclusive=True)
    assert list(both) == ["precision", "recall", "density", "coverage"]
    values = [number.value for number in both.values()]
    assert values == pytest.approx(dense(samples, real, 3, True), abs=1e-14)
    for name, rows in found.of_samples().items():
        want = [rows[groups != g].mean().item() for g in range(4)]
        assert both[name].replicates == pytest.approx(want, abs=1e-14)
        assert both[name].facts["replicates_without"] == "samples"
    dealt = neighbours.groups_of(torch.arange(90))
    for name, rows in found.of_real().items():
        want = [rows[dealt != g].mean().item() for g in range(20)]
        assert both[name].replicates == pytest.approx(want, abs=1e-14)
        assert both[name].facts["replicates_without"] == "reference"
    facts = both["recall"].facts
    assert (facts["k"], facts["edge"], facts["n"], facts["reference_n"]) == (3, "inside", 80, 90)
    json.dumps(dict(facts))
    adm = PrecisionRecall().measure(sampled, real_side)
    assert adm == {name: both[name] for name in ("precision", "recall")}
    dgm = DensityCoverage().measure(sampled, real_side)
    *_, density, coverage = dense(samples, real, 5, False)
    assert list(dgm) == ["density", "coverage"]
    assert dgm["density"].value == pytest.approx(density, abs=1e-14)
    assert dgm["coverage"].value == coverage


def test_one_group_has_no_replicates():
    sampled = Sampled({"pool3": Held(normal(20))}, torch.zeros(20, dtype=torch.long))
    found = PrecisionRecall().measure(sampled, reference(normal(30)))
    assert found["precision"].replicates == () and len(found["recall"].replicates) == 20


def test_bad_input_is_refused_where_it_enters():
    rows, few, wide, holed = normal(20), normal(3), normal(20, 7), normal(20)
    holed[4, 2], holed[7, 0] = torch.nan, torch.inf
    sampled = Sampled({"pool3": Held(rows)}, torch.arange(20))
    with pytest.raises(ValueError, match=r"Got 3 rows of the samples and k=3.*at least 4 images"):
        balls(Held(few), Held(rows), 3, inclusive=True)
    with pytest.raises(ValueError, match=r"Got 20 rows of the table and k=0"):
        radii(Held(rows), 0)
    with pytest.raises(ValueError, match=r"samples have 6 features .* activations 7; .*stats"):
        balls(Held(rows), Held(wide), 3, inclusive=True)
    with pytest.raises(ValueError, match=r"2 of the rows 0 to 19 of the reference's activations"):
        balls(Held(rows), Held(holed), 3, inclusive=True)
    for none in (None, reference(rows, layer="logits")):
        with pytest.raises(ValueError, match=r"Precision, Recall .* none of layer 'pool3'.*stats"):
            PrecisionRecall().measure(sampled, none)
    with pytest.raises(ValueError, match=r"\['accuracy'\], expected some of \['precision'"):
        Neighbours(["accuracy"])
