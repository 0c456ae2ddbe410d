"""What generated images were made from, as plain data."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from robustguide.cards import cards, present
from robustguide.checkpoints import sha256_of
from robustguide.data import SeedData
from robustguide.guidance import Combinator, Guidance, Scaled

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".pkl")


def seeds(trainer: Trainer) -> SeedData | None:
    """The data module of a generation, where there is one."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SeedData) else None


def origin(module: LightningModule, data: SeedData | None) -> dict[str, Any]:
    """All that decides how the image of a number looks, as plain data."""
    config = {key: module.hparams.get(key) for key in ("denoiser", "sampler", "guidance", "codec")}
    described = {
        **config,
        "labels": data and [type(data.labels).__name__, vars(data.labels)],
        "checkpoints": {path: sha256_of(path) for path in sorted(set(checkpoints_in(config)))},
    }
    # what was built in Python, and not by a configuration, is told by its type alone
    plain = json.dumps(described, default=lambda value: type(value).__name__)
    answer: dict[str, Any] = json.loads(plain)
    return answer


def facts(module: LightningModule, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """How a module makes images, for the line of each.

    Args:
        module: Its terms' names are the method.
        checkpoints: Hashes of the files it was made from, by their paths.

    Returns:
        `method`, `scale` of each term by its name (null where it has none), `checkpoints`, and of
        these the `guides`, which belong to the terms.
    """
    terms: Any = getattr(module, "guidance", None) or {}
    guides = set(checkpoints_in(module.hparams.get("guidance")))
    return {
        "method": " + ".join(sorted(terms)) or "unguided",
        "scale": {name: scale_of(term) for name, term in terms.items()},
        "checkpoints": sorted(set(checkpoints.values())),
        "guides": sorted({checkpoints[path] for path in guides}),
    }


def scale_of(term: Guidance) -> float | list[float] | None:
    """What multiplies a term; one number for each row where they differ."""
    found = None
    while isinstance(term, Combinator):
        if isinstance(term, Scaled):
            own = torch.tensor(term.scales, dtype=torch.float64, device="cpu")
            found = own if found is None else found * own
        term = term.term
    if found is None:
        return None
    scales: list[float] = found.tolist()
    return scales[0] if len(scales) == 1 else scales


def checkpoints_in(config: Any) -> Iterator[str]:
    """Paths of checkpoint files in a configuration, and of those that its cards stand for.

    Files below the working folder are told from there, so that results say the same elsewhere.
    Statistics of real images are none of them: each number tells the digest of its own.
    """
    named = [node.get("reference") for node in nodes(config) if isinstance(node, dict)]
    statistics = {each for each in named if isinstance(each, str)}  # else a module is described
    for node in nodes(config):
        if isinstance(node, dict):
            of = cards().get(node.get("card") or "") if not node.get("path") else None
            if of is not None and (file := present(of)) is not None:
                here = Path.cwd()
                yield str(file.relative_to(here) if file.is_relative_to(here) else file)
        elif isinstance(node, str) and node.endswith(SUFFIXES) and node not in statistics:
            if Path(node).is_file():
                yield node


def nodes(config: Any) -> Iterator[Any]:
    """A configuration and all that it holds, however deep."""
    yield config
    held = config.values() if isinstance(config, dict) else config
    for each in held if isinstance(config, dict | list) else ():
        yield from nodes(each)
