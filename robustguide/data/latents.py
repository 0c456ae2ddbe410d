"""Latents that were encoded once, as shards: safetensors files with a manifest.

A shard holds `moments` (n, 1 or 2, 2 d, g, v), the raw means and standard deviations of every
image (and of its mirror image), and the labels `y` (n,), in the order of the split. Rows are read
one by one through a memory map, so training goes through permutations as it does with images.

What is drawn of the moments is new in every epoch, a function of (seed, epoch, place) alone; in
evaluation it belongs to the place, and equals what the codec itself would give there.
"""

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from robustguide.codecs import sampled
from robustguide.data.crops import Augment
from robustguide.data.errors import DataError
from robustguide.data.images import ImageSource, Sample, Samples
from robustguide.data.manifest import Manifest, Shard
from robustguide.samplers import SeededNoise

KEY = "latents"  # of what a shard says of itself, in its header
ENCODING = 2  # stream of the per-image generators that draw latents in evaluation


class LatentShards(ImageSource):
    """Latents written by `robustguide encode`; x_0 is drawn in the denoiser's scale, float32.

    Training takes the mirrored latents half of the time, where there are any.

    Args:
        root: Folder of the shards and of `manifest.json`.
    """

    augments = False

    def __init__(self, root: str) -> None:
        self.manifest = Manifest.read(Path(root))
        if self.manifest.encoding is None:
            raise DataError(
                f"{root} holds images, not latents; read them with robustguide.data.ShardImages, "
                "or encode them with `robustguide encode`."
            )
        self.class_names, self.shape = self.manifest.class_names, self.manifest.shape

    def open(self, name: str) -> Samples:
        """The split."""
        return LatentSplit(self.manifest, name)


class LatentSplit(Samples):
    """The latents of one split."""

    is_random = True

    def __init__(self, manifest: Manifest, name: str) -> None:
        super().__init__(manifest.shape, len(manifest.class_names))
        assert manifest.encoding is not None
        self.encoding, self.shards = manifest.encoding, manifest.shards[name]
        self.ends = list(accumulate(shard.count for shard in self.shards))
        self.scale = torch.tensor(self.encoding.scale, dtype=torch.float32)
        self.shift = torch.tensor(self.encoding.shift, dtype=torch.float32)
        self.opened: dict[int, tuple[Any, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Each worker process opens files of its own."""
        return vars(self) | {"opened": {}}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Sample:
        """As it was encoded, with the noise of its place."""
        noise = SeededNoise([index], ENCODING).draw(self.shape)[0]
        return self._sample(index, False, noise)

    def drawn(self, index: int, augment: Augment | None, rng: np.random.Generator) -> Sample:
        """Mirrored or not, with new noise."""
        is_mirrored = self.encoding.mirrored and rng.random() < 0.5
        noise = rng.standard_normal(self.shape, dtype=np.float32)
        return self._sample(index, is_mirrored, torch.from_numpy(noise))

    def _sample(self, index: int, is_mirrored: bool, noise: Tensor) -> Sample:
        number = bisect_right(self.ends, index)
        shard = self.shards[number]
        if number not in self.opened:
            self.opened[number] = self._open(shard)
        moments, y = self.opened[number]
        row = index - (self.ends[number] - shard.count)
        label = int(y[row])
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"The label of row {row} of {shard.path} is {label}; with {self.num_classes} "
                f"classes it must lie in 0..{self.num_classes - 1}. Encode the images again."
            )
        x_0 = sampled(moments[row][int(is_mirrored)], noise, self.scale, self.shift)
        return x_0, label, index

    def _open(self, shard: Shard) -> tuple[Any, Tensor]:
        """Rows of moments, which are read when they are asked for, and all labels."""
        try:
            file: Any = safe_open(shard.path, framework="pt")
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            moments, y = file.get_slice("moments"), file.get_tensor("y")
            count, versions, *shape = moments.get_shape()
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"Cannot read the latents {shard.path}: {error}. Delete the file and "
                "manifest.json, and encode again: what is there is not made again."
            ) from error
        wanted = [2 * self.shape[0], *self.shape[1:]]
        if (count, len(y), shape) != (shard.count, count, wanted) or versions not in (1, 2):
            raise DataError(
                f"{shard.path} holds {count} x {shape} moments and {len(y)} labels, the manifest "
                f"says {shard.count} x {wanted}. Encode again into another folder."
            )
        if about.get("fingerprint") != self.encoding.fingerprint:
            raise DataError(
                f"{shard.path} was encoded by another codec than manifest.json says. Encode again "
                "into another folder."
            )
        return moments, y
