"""Sampling in one call, for those who have networks and want images."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robustguide.guidance import Guidance, Guided, check_gradients
from robustguide.interfaces import Codec, Denoiser
from robustguide.samplers.base import Sampler
from robustguide.samplers.heun import Heun
from robustguide.samplers.seeds import SeededNoise


def sample(
    denoiser: Denoiser,
    guidance: Mapping[str, Guidance] | None = None,
    *,
    labels: Sequence[int],
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    batch_size: int = 64,
    codec: Codec | None = None,
    raw: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Images in [-1, 1] of the given classes, on the device of the denoiser.

    Args:
        denoiser: Unguided denoiser.
        guidance: Terms by name; their displacements add.
        labels: Class of every image; `denoiser.num_classes` is the null label, to which no
            classifier guides.
        seeds: Seed of every image; 0, 1, 2... where not given. An image does not depend on the
            others nor on `batch_size`.
        sampler: How; `Heun()` where not given.
        batch_size: Images at a time.
        codec: Translates what is sampled into images; null where the denoiser's space is theirs.
        raw: Gives what was sampled itself, neither decoded nor clamped.

    Raises:
        ValueError: For a label outside the classes, none at all, or other numbers of labels and
            seeds; for terms that do not fit the denoiser, or whose classifier has no gradient,
            which costs one image forward and backward to find out.
    """
    sampler = sampler or Heun()
    seeds = range(len(labels)) if seeds is None else seeds
    Guided(denoiser, guidance, sampler.clip)  # refuses what does not fit before labels are judged
    check_labels(labels, len(seeds), denoiser, guidance or {})
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    check_gradients(denoiser, guidance or {})
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    images = []
    for first in range(0, len(labels), batch_size):
        rows = slice(first, first + batch_size)
        noise = SeededNoise(seeds[rows])
        y = torch.tensor(list(labels[rows]), device=device)
        x = sampler.start(noise.draw(denoiser.shape, device), denoiser)
        x_0 = sampler(denoiser, guidance, x, y, noise).float()
        images.append(x_0 if raw else decoded(x_0, codec))
    return torch.cat(images)


@torch.no_grad()
def decoded(x_0: Tensor, codec: Codec | None) -> Tensor:
    """Images in [-1, 1]."""
    return (x_0 if codec is None else codec.decode(x_0)).clamp(-1, 1)


def check_labels(
    labels: Sequence[int], count: int, denoiser: Denoiser, guidance: Mapping[str, Guidance]
) -> None:
    """Refuses labels here, on the host: on a GPU a wrong index aborts the process.

    Raises:
        ValueError: See `sample`.
    """
    knows_null = denoiser.has_null or not denoiser.num_classes
    highest = denoiser.num_classes if knows_null else denoiser.num_classes - 1
    wrong = [label for label in labels if not 0 <= label <= highest]
    if wrong or not len(labels) or len(labels) != count:
        raise ValueError(
            f"Labels must lie in 0..{highest}, at least one, and one for each of the {count} "
            f"seeds; got {len(labels)} labels{f' with {wrong[0]} among them' if wrong else ''}."
        )
    for name, term in guidance.items():
        if term.num_classes is not None and denoiser.num_classes in labels:
            raise ValueError(
                f"Label {denoiser.num_classes} is the null label, but term {name!r} guides to a "
                f"class; give labels in 0..{term.num_classes - 1}, or leave the term out."
            )
