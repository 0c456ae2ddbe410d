"""Inception score: how sure a network is of each image, and how many classes it sees.

    IS = mean over blocks of exp( mean over images of KL(p(k | x) || p(k)) )

with p(k) the mean of p(k | x) over the block (Salimans et al., 2016, section 4). Blocks are
consecutive images in the order of the file, 5000 each, the last one shorter and of equal weight,
and the logits are features times the logits' matrix without its bias: the evaluator of
guided-diffusion. A shuffled order gives another number. With H the entropy of p(k | x),

    mean KL = H(mean p) - mean H,

so all is a function of additive sums by block.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustguide.metrics.means import finite_blocks
from robustguide.metrics.protocol import Measure, Measured, Sampled
from robustguide.metrics.reference import Reference


class InceptionSums:
    """Sums of probabilities and entropies by block and group, in float64 on the CPU.

    Sums of disjoint sets of images add, in any order: a shard needs to know its images' numbers.

    Args:
        n: Number of images of all shards together.
        classes: Number of logits.
        block: Images of a block.
        groups: Number of groups for replicates.

    Raises:
        ValueError: For no images or an empty block.
    """

    def __init__(self, n: int, classes: int, block: int = 5000, groups: int = 1) -> None:
        if n < 1 or block < 1:
            raise ValueError(
                f"Got {n} images in blocks of {block}; the Inception score needs at least one "
                "image and one image to a block."
            )
        self.n, self.block = n, block
        shape = -(-n // block), groups
        self.count = torch.zeros(shape, dtype=torch.float64)
        self.entropy = torch.zeros(shape, dtype=torch.float64)
        self.probability = torch.zeros(*shape, classes, dtype=torch.float64)

    def add(
        self,
        logits: Float[Tensor, "b k"],
        index: Int[Tensor, " b"],
        group: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Adds images.

        Args:
            logits: Without the bias.
            index: Number of each image in the order of the file, from 0 to n - 1.
            group: Of each image; null: group 0.
        """
        # first the device, then the dtype: the source may not know float64
        log_p = logits.cpu().double().log_softmax(dim=-1)
        p = log_p.exp()
        groups = self.count.shape[1]
        group = torch.zeros_like(index) if group is None else group
        cell = (index // self.block * groups + group).cpu().long()
        self.count.view(-1).index_add_(0, cell, torch.ones(len(cell), dtype=torch.float64))
        # p is 0 where log p is below -745, and 0 times a finite number is 0
        self.entropy.view(-1).index_add_(0, cell, -(p * log_p).sum(-1))
        self.probability.view(-1, p.shape[1]).index_add_(0, cell, p)

    def merge(self, other: "InceptionSums") -> None:
        """Adds the images of another shard.

        Raises:
            ValueError: If it was cut into other blocks or groups.
        """
        mine, theirs = (
            {"n": s.n, "block": s.block, "groups": s.count.shape[1], "k": s.probability.shape[2]}
            for s in (self, other)
        )
        if mine != theirs:
            raise ValueError(
                f"Sums of {mine} and of {theirs} do not add; start both with the number of all "
                "images and with the same blocks and groups."
            )
        self.count += other.count
        self.entropy += other.entropy
        self.probability += other.probability

    def score(self, without: int | None = None) -> float:
        """The score, or what it is without a group; blocks where no image is left do not count.

        Raises:
            ValueError: When no image is left.
        """
        sums = [self.count, self.entropy, self.probability]
        if without is None:
            count, entropy, probability = (each.sum(1) for each in sums)
        else:
            count, entropy, probability = (each.sum(1) - each[:, without] for each in sums)
        some = count > 0
        if not some.any():
            raise ValueError("No image is left to score; add images, or leave out fewer.")
        count, entropy, probability = count[some], entropy[some], probability[some]
        mean = probability.clamp(min=0) / count[:, None]  # differences of sums may round below 0
        divergence = torch.special.entr(mean).sum(-1) - entropy / count
        return float(divergence.exp().mean())


class InceptionScore(Measure):
    """The Inception score; replicates leave images out of their blocks and move none.

    Args:
        layer: Logits without bias.
        block: Images of a block.
    """

    needs = "nothing"

    def __init__(self, layer: str = "logits", block: int = 5000) -> None:
        self.titles, self.lower_is_better = {"inception_score": "IS"}, {"inception_score": False}
        self.layer, self.block = layer, block

    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """See `Measure`."""
        logits, groups = sampled.layers[self.layer], int(sampled.groups.max()) + 1
        sums = InceptionSums(logits.rows, logits.dim, self.block, groups)
        for rows, block in finite_blocks(logits, "samples"):
            sums.add(block, torch.arange(rows.start, rows.stop), sampled.groups[rows])
        replicates = [sums.score(g) for g in range(groups)] if groups > 1 else []
        facts = {"block": self.block, "blocks": len(sums.count), "layer": self.layer}
        return {"inception_score": Measured(sums.score(), tuple(replicates), facts)}
