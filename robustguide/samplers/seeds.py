"""Noise that belongs to an image and not to a batch: one CPU generator for every image index."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

EVALUATION = 1  # stream of the generators that noise images in an evaluation


class SeededNoise:
    """Draws unit noise row by row, so that a seed names one image on any device, in any batch.

    Args:
        seeds: One non-negative seed a row.
        stream: Other uses of the same seeds (labels, evaluation noise) take another stream, so
            that their numbers are independent; 0 seeds the generators with the seeds themselves.
    """

    def __init__(self, seeds: Sequence[int], stream: int = 0) -> None:
        self.seeds, self.stream = tuple(seeds), stream
        self.generators = [
            torch.Generator().manual_seed(seed if stream == 0 else mixed(seed, stream))
            for seed in seeds
        ]

    def spawn(self, name: str) -> "SeededNoise":
        """Other noise of the same seeds, for another use of that name."""
        return SeededNoise(self.seeds, mixed(self.stream, zlib.crc32(name.encode())) or 1)

    def draw(
        self, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Float[Tensor, " b *axes"]:
        """Unit noise of a shape for every row, float32."""
        rows = [torch.randn(tuple(shape), generator=generator) for generator in self.generators]
        return torch.stack(rows).to(device, non_blocking=True)

    def __call__(self, x: Float[Tensor, " b *axes"]) -> Float[Tensor, " b *axes"]:
        """Unit noise like x.

        Raises:
            ValueError: For another number of rows than of seeds.
        """
        if len(x) != len(self.generators):
            raise ValueError(f"{len(self.generators)} seeds cannot draw noise for {len(x)} rows.")
        return self.draw(x.shape[1:], x.device).to(x)


def mixed(*words: int) -> int:
    """One 32-bit seed from several non-negative numbers (torch's CPU generator takes 32 bits)."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def evaluation_noise(index: Int[Tensor, " b"], draw: int = 0) -> SeededNoise:
    """The noise of images by their numbers, wherever a network is measured."""
    noise = SeededNoise(index.tolist(), EVALUATION)
    return noise.spawn(f"draw {draw}") if draw else noise
