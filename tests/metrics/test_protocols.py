"""What each protocol fixes, as its publication states it."""

import pytest

from robustguide.cards import cards
from robustguide.metrics.agreement import ClassAccuracy, MeanCosine
from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.inception_score import InceptionScore
from robustguide.metrics.kernel import Kid
from robustguide.metrics.neighbours import Neighbours, PrecisionRecall
from robustguide.metrics.protocols import PROTOCOLS, protocol
from robustguide.metrics.resizing import resize

NAMES = [
    "adm", "edm", "clean", "fd-dinov2-edm2", "fd-dinov2-dgm", "clip-score", "class-accuracy",
    "digits_features", "fashion_mnist_features", "classifier_features",
]  # fmt: skip


def kinds(name):
    return [type(measure) for measure in protocol(name).measures]


def test_the_names():
    assert list(PROTOCOLS) == NAMES
    assert all(PROTOCOLS[name].name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_resize_a_source_and_distinct_keys(name):
    found = protocol(name)
    assert resize(found.resize) is not None and found.source
    titles = [title for measure in found.measures for title in measure.titles]
    assert len(titles) == len(set(titles))
    assert all(
        measure.lower_is_better.keys() == measure.titles.keys() for measure in found.measures
    )
    if found.weights is not None and "/" not in found.weights:
        assert found.weights in cards()


def test_adm():
    """Evaluator of guided-diffusion: k = 3, 10,000 activations, edge inside, blocks of 5000."""
    adm = protocol("adm")
    assert kinds("adm") == [FrechetMeasure, FrechetMeasure, InceptionScore, PrecisionRecall]
    assert [measure.layer for measure in adm.measures] == ["pool3", "spatial", "logits", "pool3"]
    _, _, score, balls = adm.measures
    assert score.block == 5000 and (balls.k, balls.inclusive) == (3, True)
    assert (adm.activations, adm.images, adm.resize) == (10_000, 50_000, "tf1-bilinear-299")
    keys = [adm.key(name) for measure in adm.measures for name in measure.titles]
    assert keys == ["fid/adm", "sfid/adm", "inception_score/adm", "precision/adm", "recall/adm"]
    assert adm.shown("fid", 2000) == "FID-2k@adm" and adm.shown("sfid", 1500) == "sFID-1.5k@adm"


def test_one_network_two_resizes():
    adm, edm, clean = (protocol(name) for name in ("adm", "edm", "clean"))
    assert adm.network == edm.network == clean.network == "inception-2015-12-05"
    assert adm.resize == edm.resize != clean.resize == "pil-bicubic-float-299"
    assert kinds("edm") == [FrechetMeasure] and kinds("clean") == [FrechetMeasure, Kid]


def test_dinov2_in_two_ways():
    edm2, dgm = protocol("fd-dinov2-edm2"), protocol("fd-dinov2-dgm")
    assert edm2.network == dgm.network and edm2.weights == dgm.weights == "dinov2-vitl14"
    assert (edm2.resize, dgm.resize) == ("torch-bicubic-antialias-224", "pil-bicubic-224")
    assert kinds("fd-dinov2-edm2") == [FrechetMeasure]
    assert kinds("fd-dinov2-dgm") == [FrechetMeasure, Neighbours]
    assert (dgm.measures[1].k, dgm.measures[1].inclusive) == (5, False)
    assert list(dgm.measures[1].titles) == ["precision", "recall", "density", "coverage"]


def test_those_that_need_no_reference():
    assert kinds("clip-score") == [MeanCosine] and kinds("class-accuracy") == [ClassAccuracy]
    for name in ("clip-score", "class-accuracy"):
        assert all(measure.needs == "nothing" for measure in protocol(name).measures)
    assert protocol("class-accuracy").weights is None


def test_features_of_classifiers():
    for name in ("digits_features", "fashion_mnist_features", "classifier_features"):
        found = protocol(name)
        assert found.key("frechet") == f"frechet/{name}"
        assert kinds(name) == [FrechetMeasure, Kid, PrecisionRecall]
        assert {measure.layer for measure in found.measures} == {"features"}
        assert found.resize == "none"
    assert protocol("fashion_mnist_features").head == "net.out.2.c_proj"


@pytest.mark.parametrize("name", ["fid", "ADM", ""])
def test_unknown_names_list_all(name):
    with pytest.raises(ValueError, match=r"There is no protocol .*there are adm, edm, .*features"):
        protocol(name)
    with pytest.raises(ValueError, match=r"did you mean fd-dinov2-dgm"):
        protocol("fd-dinov2")
