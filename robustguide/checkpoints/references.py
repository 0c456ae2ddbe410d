"""Statistics of real images: our own files, and those that others publish.

What a foreign file was made by follows from what it holds: `mu_s` or `arr_0` beside `mu` and
`sigma` is ADM's evaluator, `mu` and `sigma` alone EDM's, and a pickle that has them by metric,
`fid` and `fd_dinov2`, is EDM2's.
"""

import mmap
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustguide.checkpoints.archives import read_pickle
from robustguide.checkpoints.arrays import Arrays
from robustguide.checkpoints.claims import Claim, RefusedError
from robustguide.checkpoints.metadata import sha256_of
from robustguide.checkpoints.pickles import Unfinished
from robustguide.metrics.extractor import Extractor, Identity
from robustguide.metrics.moments import Moments
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.protocols import protocol as named
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Held

IMAGES = "arr_0"
PARTS = {"pool3": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s"), "cls": ("mu", "sigma")}
DIMS = {"pool3": 2048, "spatial": 2023, "cls": 1024}
LAYERS = {"adm": ("pool3", "spatial"), "edm": ("pool3",), "fd-dinov2-edm2": ("cls",)}
OF_METRICS = {"fid": "edm", "fd_dinov2": "fd-dinov2-edm2"}  # in EDM2's pickles
ASYMMETRY = 1e-5  # of the largest covariance; float32 sums have about 1e-6
EXPECTED = (
    "expected a file of `robustguide stats`, ADM's or EDM's .npz (mu, sigma), or EDM2's .pkl "
    "(fid, fd_dinov2)"
)


def open_reference(path: str | os.PathLike[str], protocol: Protocol) -> Reference:
    """Statistics from a file, as `robustguide stats` or others wrote them.

    Args:
        path: The file.
        protocol: That samples are to be measured by.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If the file is damaged, holds no statistics, or those of another protocol.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} does not exist (from {Path.cwd()}); {EXPECTED}.")
    with open(file, "rb") as stream:
        start = stream.read(9)
    if file.suffix == ".safetensors" or start[8:] == b"{":
        found = {each.protocol: each for each in [Reference.load(file)]}
    elif start[:2] == b"PK":
        found = _of_archive(file)
    elif start[:1] == b"\x80":
        found = _of_pickle(file)
    else:
        raise ValueError(f"{path} holds no statistics, or is damaged; {EXPECTED}.")
    if protocol.name not in found:
        have = ", ".join(found)
        raise ValueError(
            f"The samples are to be measured by protocol {protocol.name!r}, but {path} was made "
            f"by {have!r}; score by --protocol {next(iter(found))}, or write a reference with "
            f"`robustguide stats DATA --protocol {protocol.name}`."
        )
    return found[protocol.name]


def with_activations(
    reference: Reference, extractor: Extractor, protocol: Protocol, batch_size: int
) -> Reference:
    """Adds the features of the images in ADM's file, where a protocol needs them.

    Args:
        reference: Returned as it is when nothing is missing, or when there are no images.
        extractor: On its device.
        protocol: Tells which layers.
        batch_size: Images at a time.

    Raises:
        ValueError: If the extractor is not that of the reference, or the images are no bytes.
    """
    wanted = {each.layer for each in protocol.measures if each.needs == "activations"}
    missing = wanted - set(reference.activations)
    file = reference.provenance.file
    if not missing or file is None or Path(file).suffix != ".npz":
        return reference
    arrays = Arrays(file)
    if IMAGES not in arrays.names:
        return reference
    protocol.require(reference, extractor.identity)
    header = arrays.header(IMAGES)
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[3] != 3:
        raise ValueError(
            f"{IMAGES} in {file} is {header.dtype} of shape {list(header.shape)}; expected images "
            "as bytes (n, h, w, 3). Get the file again from where it was published."
        )
    device = next((each.device for each in extractor.parameters()), torch.device("cpu"))
    features: dict[str, Tensor] = {}
    done = 0
    for rows in arrays.rows(IMAGES, batch_size):
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()
        layers = extractor(pixels.to(device))
        for layer in missing:
            if layer not in features:
                features[layer] = torch.empty(
                    header.shape[0], layers[layer].shape[1], device="cpu"
                )
            features[layer][done : done + len(rows)] = layers[layer].cpu()
        done += len(rows)
    held = {layer: Held(kept) for layer, kept in features.items()}
    return replace(reference, activations={**reference.activations, **held})


def _of_archive(file: Path) -> dict[str, Reference]:
    """By protocol, which is one."""
    arrays = Arrays(file)
    name = "adm" if {"mu_s", "sigma_s", IMAGES} & set(arrays.names) else "edm"
    if not {"mu", "sigma"} <= set(arrays.names):
        hint = (
            f"; compute them from its images with `robustguide stats {file} --protocol adm`"
            if IMAGES in arrays.names
            else ""
        )
        raise ValueError(f"{file} holds {', '.join(arrays.names)}, no mu and sigma{hint}.")
    found = {}
    for layer in LAYERS[name]:
        keys = PARTS[layer]
        there = [key for key in keys if key in arrays.names]
        if len(there) == 1:
            raise ValueError(f"{file} has {there[0]} without the other of {', '.join(keys)}.")
        if there:
            shapes = [arrays.header(key).shape for key in keys]  # before memory is asked for
            _check_shapes(shapes, layer, keys, str(file))
            mu, sigma = (torch.from_numpy(arrays.read(key)) for key in keys)
            found[layer] = _moments(mu, sigma, keys, str(file))
    return {name: _foreign(file, name, found)}


def _of_pickle(file: Path) -> dict[str, Reference]:
    """By protocol."""
    with open(file, "rb") as stream:
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        read = read_pickle(content)
    except RefusedError as error:
        raise ValueError(f"{file} was not opened: {error}") from error
    metrics = [each for each in OF_METRICS if isinstance(read, dict) and each in read]
    if not metrics:
        raise ValueError(f"{file} has neither of {', '.join(OF_METRICS)}; {EXPECTED}.")
    found = {}
    for metric in metrics:
        name = OF_METRICS[metric]
        (layer,) = LAYERS[name]
        where = f"{metric} in {file}"
        mu, sigma = _parts(read[metric], where)
        _check_shapes([tuple(mu.shape), tuple(sigma.shape)], layer, PARTS[layer], where)
        found[name] = _foreign(file, name, {layer: _moments(mu, sigma, PARTS[layer], where)})
    return found


def _parts(read: Any, where: str) -> tuple[Tensor, Tensor]:
    held = [read.get(key) for key in ("mu", "sigma")] if isinstance(read, dict) else []
    claims = [each.value if isinstance(each, Unfinished) else each for each in held]
    tensors = [claim.tensor() for claim in claims if isinstance(claim, Claim)]
    if len(tensors) != 2:
        raise ValueError(f"{where} has no arrays mu and sigma; {EXPECTED}.")
    return tensors[0], tensors[1]


def _check_shapes(
    shapes: list[tuple[int, ...]], layer: str, keys: tuple[str, str], where: str
) -> None:
    dim = DIMS[layer]
    if shapes != [(dim,), (dim, dim)]:
        raise ValueError(
            f"{keys[0]} and {keys[1]} in {where} are of shapes {list(shapes[0])} and "
            f"{list(shapes[1])}; features of layer {layer!r} have [{dim}] and [{dim}, {dim}]. Get "
            "the file again from where it was published."
        )


def _moments(mu: Tensor, sigma: Tensor, keys: tuple[str, str], where: str) -> Moments:
    """Moments of images whose number is not told.

    Raises:
        ValueError: For values that are no mean and covariance.
    """
    mu, sigma = mu.double(), sigma.double()
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(
            f"{keys[0]} and {keys[1]} in {where} hold values that are not finite; get the file "
            "again from where it was published."
        )
    off = float((sigma - sigma.T).abs().max())
    if off > ASYMMETRY * float(sigma.abs().max()):
        raise ValueError(
            f"{keys[1]} in {where} is no covariance: it differs from its transpose by up to "
            f"{off:.3g}. Get the file again from where it was published."
        )
    return Moments(None, mu, sigma)


def _foreign(file: Path, name: str, moments: Mapping[str, Moments]) -> Reference:
    of = named(name)
    provenance = Provenance(file.name, digest=sha256_of(file), file=str(file))
    identity = Identity(of.network, None, of.resize)
    return Reference(name, identity, provenance, moments, {})
