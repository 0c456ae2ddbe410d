"""FID and KID as clean-fid computes its features: Pillow's bicubic of floats, without rounding.

KID is the estimate by disjoint blocks, where clean-fid draws subsets at random.
"""

from robustguide.metrics.distances import FrechetMeasure
from robustguide.metrics.kernel import Kid
from robustguide.metrics.protocol import Protocol

CLEAN = Protocol(
    name="clean",
    network="inception-2015-12-05",
    resize="pil-bicubic-float-299",
    measures=(FrechetMeasure("fid", "FID", "pool3"), Kid("pool3")),
    source="Parmar et al. (2022); clean-fid 0.1.35, mode clean",
    weights="inception-fid",
)
