"""FD-DINOv2 in the two ways of the literature, which differ in how images are resized.

EDM2 resizes with PyTorch and antialiases, dgm-eval with Pillow, which rounds to bytes.
"""

from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.neighbours import Neighbours
from robustguide.metrics.protocol import Protocol

NETWORK, CARD = "dinov2-vitl14", "dinov2-vitl14"

EDM2 = Protocol(
    name="fd-dinov2-edm2",
    network=NETWORK,
    resize="torch-bicubic-antialias-224",
    measures=(FrechetMeasure("fd", "FD", "cls"),),
    source="Karras et al. (2024); NVlabs/edm2 @ 4bf8162, calculate_metrics.py",
    weights=CARD,
)
DGM = Protocol(
    name="fd-dinov2-dgm",
    network=NETWORK,
    resize="pil-bicubic-224",
    measures=(
        FrechetMeasure("fd", "FD", "cls"),
        Neighbours(
            ("precision", "recall", "density", "coverage"), k=5, inclusive=False, layer="cls"
        ),
    ),
    source="Stein et al. (2023); layer6ai-labs/dgm-eval @ 74c79f7",
    weights=CARD,
)
