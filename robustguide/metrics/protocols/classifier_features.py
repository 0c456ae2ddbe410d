"""Distances between features of a classifier, for images that Inception knows nothing of.

They compare methods on one data set with one network, and are not FID. The features of digits are
those of a network that the demo trains, the features of Fashion-MNIST those of one that ships.
"""

from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.kernel import Kid
from robustguide.metrics.neighbours import PrecisionRecall
from robustguide.metrics.protocol import Protocol

MEASURES = (
    FrechetMeasure("frechet", "FD", "features"),
    Kid("features"),
    PrecisionRecall(k=3, inclusive=True, layer="features"),
)

DIGITS = Protocol(
    name="digits_features",
    network="digits_features",
    resize="none",
    measures=MEASURES,
    source="`robustguide demo` trains it, or `robustguide fit` with configs/overlay/"
    "digits.yaml, configs/overlay/digits_classifier.yaml and configs/fit/digits_features.yaml",
    weights="runs/demo/features/classifier.safetensors",
    images=1000,
)
FASHION_MNIST = Protocol(
    name="fashion_mnist_features",
    network="fashion_mnist_features",
    resize="none",
    measures=MEASURES,
    source="it ships with the package; the second command in the head of "
    "configs/fit/fashion_mnist_judge.yaml trained it",
    weights="fashion-mnist-features",
    images=1000,
    head="net.out.2.c_proj",
)
OWN = Protocol(
    name="classifier_features",
    network="classifier_features",
    resize="none",
    measures=MEASURES,
    source="a classifier of your own, in the file that its training exported",
)
