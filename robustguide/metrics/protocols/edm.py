"""FID as EDM computes it: bytes, TensorFlow 1's resize inside the network, sums in float64.

EDM's own file of weights is TorchScript of the same graph; that is code, and is not opened.
"""

from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.protocol import Protocol

EDM = Protocol(
    name="edm",
    network="inception-2015-12-05",
    resize="tf1-bilinear-299",
    measures=(FrechetMeasure("fid", "FID", "pool3"),),
    source="Karras et al. (2022); NVlabs/edm @ 008a4e5, fid.py",
    weights="inception-fid",
)
