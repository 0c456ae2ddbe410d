"""FID, sFID, Inception score, precision and recall as guided-diffusion's evaluator computes them.

Images pass TensorFlow 1's resize inside the graph of Inception. Precision and recall compare all
samples with the 10,000 images of the reference batch.
"""

from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.inception_score import InceptionScore
from robustguide.metrics.neighbours import PrecisionRecall
from robustguide.metrics.protocol import Protocol

ADM = Protocol(
    name="adm",
    network="inception-2015-12-05",
    resize="tf1-bilinear-299",
    measures=(
        FrechetMeasure("fid", "FID", "pool3"),
        FrechetMeasure("sfid", "sFID", "spatial"),
        InceptionScore("logits", block=5000),
        PrecisionRecall(k=3, inclusive=True, layer="pool3"),
    ),
    source="Dhariwal and Nichol (2021); openai/guided-diffusion @ 22e0df8, evaluator.py",
    weights="inception-fid",
)
