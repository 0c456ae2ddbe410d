"""Writes the latents of a set of images as shards; see `latents` for what they hold."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustguide.checkpoints.digest import feed
from robustguide.codecs import KLCodec
from robustguide.data.errors import DataError
from robustguide.data.images import ImageSource, Samples
from robustguide.data.latents import KEY
from robustguide.data.loaders import load
from robustguide.data.manifest import (
    FILE,
    Encoding,
    Manifest,
    Shard,
    slices,
    under_temporary_name,
)
from robustguide.data.splits import SPLITS


@dataclass(frozen=True)
class LatentWriter:
    """Encodes sets of images; shards that are there are not made again.

    Each shard is a function of its own images, so a run that was stopped ends with the files of
    an unbroken one. The codec stays on its device.

    Args:
        codec: Encodes, in float32.
        dtype: Of the moments in the files, float16 or float32.
        mirrored: Encodes training images a second time, mirrored left and right.
        per_shard: Images in a shard.
        batch_size: Images that are encoded at a time.
        num_workers: Processes that read images.
        tell: Called with the number of images of each batch or skipped shard.
    """

    codec: KLCodec
    dtype: torch.dtype = torch.float16
    mirrored: bool = True
    per_shard: int = 4096
    batch_size: int = 64
    num_workers: int = 0
    tell: Callable[[int], None] = lambda count: None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        known = self.dtype in (torch.float16, torch.float32)
        if not known or self.per_shard < 1 or self.batch_size < 1:
            raise ValueError(
                "dtype must be float16 or float32, per_shard and batch_size 1 or more; got "
                f"{self.dtype}, {self.per_shard} and {self.batch_size}."
            )

    def write(self, source: ImageSource, folder: str, recipe: str | None = None) -> Manifest:
        """Writes all splits of a source, not augmented, and at last the manifest.

        Args:
            source: The images.
            folder: Where the files go.
            recipe: How the images were made, for the manifest; without it, the source's class.

        Raises:
            ValueError: If the folder holds something else, or the codec cannot read the images.
            OSError: If the disk is full; no file is left half written under its final name.
        """
        root, shape = Path(folder), self.codec.latent_shape(source.shape)
        encoding = described(self.codec, source, self.dtype, self.mirrored)
        recipe = recipe or type(source).__name__
        check_manifest(root / FILE, encoding)
        root.mkdir(parents=True, exist_ok=True)
        self.codec.eval()
        shards: dict[str, list[Shard]] = {}
        for name in SPLITS:
            header = asdict(encoding) | {"recipe": recipe, "split": name}
            split = source.split(name)
            shards[name] = [
                self._shard(root / f"{name}-{number:06d}.safetensors", split, rows, header)
                for number, rows in enumerate(slices(range(len(split)), self.per_shard))
            ]
        manifest = Manifest(list(source.class_names), shape, recipe, shards, encoding)
        manifest.write(root)
        return manifest

    def _shard(
        self, path: Path, split: Samples, rows: Sequence[int], header: dict[str, Any]
    ) -> Shard:
        """Writes a shard, or looks whether the one that is there is the same."""
        about = json.dumps(header | {"rows": [rows[0], rows[-1]]})
        told = {KEY: about}  # one entry, since the format keeps several in no order
        if path.is_file():
            check(path, told)
            self.tell(len(rows))
        else:
            versions = 2 if self.mirrored and header["split"] == "train" else 1
            tensors = self._encoded(split, rows, versions)
            with under_temporary_name(path) as file:
                file.write(save(tensors, told))
        return Shard(path, len(rows))

    @torch.no_grad()
    def _encoded(self, split: Samples, rows: Sequence[int], versions: int) -> dict[str, Tensor]:
        """Moments and labels of a shard."""
        moments, labels = [], []
        batches = [list(batch) for batch in slices(rows, self.batch_size)]
        for images, y, _ in load(split, batches, self.num_workers):
            images = images.to(self.codec.scale.device)
            both = [images, images.flip(-1)][:versions]
            found = torch.stack([self.codec.moments(each) for each in both], dim=1)
            moments.append(found.to(self.dtype).cpu())
            if not moments[-1].isfinite().all():
                raise ValueError(
                    f"The codec gives latents that {self.dtype} cannot hold; take float32, or a "
                    "codec whose weights are whole."
                )
            labels.append(y)
            self.tell(len(y))
        return {"moments": torch.cat(moments), "y": torch.cat(labels)}


def described(codec: KLCodec, source: ImageSource, dtype: torch.dtype, mirrored: bool) -> Encoding:
    """What a manifest says of latents."""
    return Encoding(
        codec=type(codec).__name__,
        fingerprint=fingerprint(codec),
        image_shape=tuple(source.shape),
        factor=codec.factor,
        dtype=str(dtype).removeprefix("torch."),
        mirrored=mirrored,
        scale=tuple(codec.scale.tolist()),
        shift=tuple(codec.shift.tolist()),
    )


def fingerprint(codec: KLCodec) -> str:
    """SHA-256 of all tensors of a codec and of the range of its pixels."""
    digest = hashlib.sha256(repr(codec.pixel_range).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        feed(digest, name, tensor)
    return digest.hexdigest()


def check_manifest(path: Path, encoding: Encoding) -> None:
    """Looks whether a manifest that is there is of the same latents; its shards may be missing.

    Raises:
        ValueError: If it is not.
    """
    if not path.is_file():
        return
    try:
        found = Encoding.of(json.loads(path.read_text())["encoding"])
    except (ValueError, KeyError, TypeError):
        found = None
    if found != encoding:
        raise other(path)


def check(path: Path, told: dict[str, str]) -> None:
    """Looks whether a shard that is there is the one that would be written.

    Raises:
        ValueError: If it is not.
    """
    try:
        file: Any = safe_open(path, framework="pt")
        found = file.metadata()
    except (SafetensorError, OSError) as error:
        raise DataError(f"Cannot read {path}: {error}. Delete it and run this again.") from error
    if found != told:
        raise other(path)


def other(path: Path) -> DataError:
    """The error of a folder that was begun with something else."""
    return DataError(
        f"{path} is of another codec, source or settings; choose another folder, or delete the "
        "files of that run."
    )
