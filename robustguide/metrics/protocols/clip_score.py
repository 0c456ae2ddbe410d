"""CLIP score: the raw mean cosine of images and the texts of their labels.

No factor of 100 or 2.5 and no clamp at 0, which publications use in turn. The number means
something only beside the name of the model, which the identity of the extractor tells.
"""

from robustguide.metrics.agreement import MeanCosine
from robustguide.metrics.protocol import Protocol

CLIP_SCORE = Protocol(
    name="clip-score",
    network="clip ViT-L-14-336-quickgelu",
    resize="pil-bicubic-336",
    measures=(MeanCosine("cosine"),),
    source="Hessel et al. (2021), without their factor; Radford et al. (2021)",
    weights="clip-vit-l14-336",
)
