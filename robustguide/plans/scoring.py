"""From samples to a score: features to disk, measures over them, intervals beside the numbers."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustguide.checkpoints import sha256_of
from robustguide.data.generated import Generated
from robustguide.files import whole
from robustguide.metrics.distances import FrechetMeasure, too_few
from robustguide.metrics.extractor import Extractor, Identity
from robustguide.metrics.extrapolation import LEAST, SIZES, extrapolate
from robustguide.metrics.jackknife import GROUPS, Jackknife, groups_of
from robustguide.metrics.protocol import Measured, Protocol, Sampled
from robustguide.metrics.reference import Reference
from robustguide.metrics.score import Entry, Score, digest_of_seeds, finite
from robustguide.metrics.stores import FeatureStore
from robustguide.metrics.tables import Chosen, Table


@dataclass(frozen=True)
class Features:
    """Of some samples, in the order of their numbers.

    Attributes:
        layers: By name.
        seeds: Of the samples (n,).
        y: Labels (n,); null where there are none.
    """

    layers: Mapping[str, Table]
    seeds: Tensor
    y: Tensor | None


def extract(
    samples: Generated,
    extractor: Extractor,
    store: FeatureStore,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda images: None,
) -> Features:
    """Features of all samples, in a store that a stopped run goes on with.

    Args:
        samples: The images.
        extractor: Makes the features.
        store: What is there is not made again; it must be of this extractor.
        batch_size: Images at a time.
        device: Of the extractor.
        advance: Told of images that are done.

    Raises:
        ValueError: For images without labels, where the network reads them, and for a store that
            holds features of other images.
    """
    extractor.to(device)
    marks = store.marks()
    numbers, seeds = [], []
    for batch in samples.batches(batch_size):
        mark = [marked(image.numpy().tobytes()) for image in batch.pixels]
        known = [marks.get(number) for number in batch.index.tolist()]
        if any(there not in (None, now) for there, now in zip(known, mark, strict=True)):
            raise ValueError(
                f"{store.folder} holds features of other images of the same numbers; the samples "
                "have changed since. Delete it, or give another --features folder."
            )
        if None in known:
            y = None if batch.y is None else batch.y.to(device)
            layers = extractor(batch.pixels.to(device), y)
            store.add(batch.index, layers, batch.y, torch.tensor(mark))
        numbers.append(batch.index)
        seeds.append(batch.seed)
        advance(len(batch.index))
    stored, index = store.finish(), torch.cat(numbers)
    places = torch.searchsorted(stored.index, index)  # perhaps there are others, of a larger n
    layers = {name: _some(table, places.tolist()) for name, table in stored.layers.items()}
    return Features(layers, torch.cat(seeds), None if stored.y is None else stored.y[places])


def _some(table: Table, rows: list[int]) -> Table:
    return table if rows == list(range(table.rows)) else Chosen(table, rows)


def marked(content: bytes) -> int:
    """A hash of an image's bytes, of 63 bits."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


def score(
    protocol: Protocol,
    identity: Identity,
    features: Features,
    reference: Reference | None,
    made: Mapping[str, Any],
    blocks: int = 1,
    groups: int = GROUPS,
    infinity: bool = True,
) -> Score:
    """All numbers of a protocol.

    Args:
        protocol: What is computed.
        identity: Of the network that made the features.
        features: Of the samples.
        reference: Of the real images; null for a protocol that needs none.
        made: What the samples are.
        blocks: Of consecutive seeds, in each of which everything is measured.
        groups: Of the jackknife; below 2, there are no intervals.
        infinity: Whether Frechet distances are extrapolated to endless images.

    Raises:
        ValueError: For a reference of another protocol, extractor or resize, for images that do
            not divide into the blocks, and where nothing can be measured.
    """
    check(protocol, identity, reference, len(features.seeds), blocks)
    n = len(features.seeds) // blocks
    rows = [range(block * n, (block + 1) * n) for block in range(blocks)]
    parts = [_sampled(features, each, groups) for each in rows]
    entries: dict[str, Entry] = {}
    failed: list[str] = []
    for measure in protocol.measures:
        try:
            found = [measure.measure(part, reference) for part in parts]
        except ValueError as error:  # too few images for this one: the others are worth it
            shown = ", ".join(protocol.shown(name, n) for name in measure.titles)
            failed.append(f"{shown} was not measured. {error}")
            continue
        for name in found[0]:
            way = measure.lower_is_better[name]
            each = [measured[name] for measured in found]
            entries[protocol.key(name)] = _entry(protocol, name, n, way, each)
        if infinity and isinstance(measure, FrechetMeasure) and reference is not None:
            (name,) = measure.titles
            each = [measured[name] for measured in found]
            line = endless(parts, each, measure, reference)
            entries[protocol.key(name)] = replace(entries[protocol.key(name)], infinity=line)
    if not entries:
        raise ValueError(" ".join(failed))
    return Score(
        protocol.name,
        identity,
        n,
        entries,
        made,
        digest_of_seeds(features.seeds),
        None if reference is None else _told(reference),
        [*warnings(protocol, features, n), *failed],
    )


def check(
    protocol: Protocol, identity: Identity, reference: Reference | None, images: int, blocks: int
) -> None:
    """Refuses what cannot be measured, before anything is."""
    needing = [measure for measure in protocol.measures if measure.needs != "nothing"]
    if reference is not None:
        protocol.require(reference, identity)
        for measure in needing:
            held = reference.activations if measure.needs == "activations" else reference.moments
            if measure.layer not in held:
                raise ValueError(
                    f"{', '.join(measure.titles.values())} by {protocol.name!r} needs the "
                    f"{measure.needs} of layer {measure.layer!r}; the reference "
                    f"{reference.provenance.data!r} has those of {sorted(held) or 'none'}. Write "
                    f"one with `robustguide stats DATA --protocol {protocol.name}`."
                )
    elif needing:
        raise ValueError(
            f"Protocol {protocol.name!r} compares with real images; give --reference FILE, as "
            f"`robustguide stats DATA --protocol {protocol.name}` writes it or as its authors "
            "publish it."
        )
    if blocks < 1 or images % blocks or images == 0:
        raise ValueError(
            f"{images} images do not divide into {blocks} blocks of equal size; give a number of "
            f"blocks that divides them, or --n {images - images % max(blocks, 1)}."
        )


def _sampled(features: Features, rows: range, groups: int) -> Sampled:
    layers = {name: _some(table, list(rows)) for name, table in features.layers.items()}
    some = slice(rows.start, rows.stop)
    group = groups_of(features.seeds[some], groups)
    y = None if features.y is None else features.y[some]
    return Sampled(layers, group, y)


def _entry(
    protocol: Protocol, name: str, n: int, lower_is_better: bool, each: Sequence[Measured]
) -> Entry:
    values = [finite(measured.value, protocol.shown(name, n)) for measured in each]
    value = sum(values) / len(values)
    replicates: tuple[float, ...] = ()
    if all(measured.replicates for measured in each):
        columns = zip(*(measured.replicates for measured in each), strict=True)
        replicates = tuple(sum(column) / len(column) for column in columns)
    return Entry(
        value,
        protocol.shown(name, n),
        n,
        lower_is_better,
        Measured(value, replicates).interval(),
        replicates,
        tuple(values),
        facts=each[0].facts,
    )


def endless(
    parts: Sequence[Sampled],
    each: Sequence[Measured],
    measure: FrechetMeasure,
    reference: Reference,
) -> dict[str, float] | None:
    """A distance's line to endless images, of several blocks the mean; null for too few images.

    The smallest blocks have twice as many images as features: below, distances bend away from a
    line in 1/n.
    """
    lines = []
    for part, measured in zip(parts, each, strict=True):
        table = part.layers[measure.layer]
        sizes = min(SIZES, table.rows // max(LEAST, 2 * table.dim))
        if sizes < 3 or len(measured.replicates) < 2:
            return None
        jackknife = Jackknife(measured.value, measured.replicates)
        found = extrapolate(table, reference.moments[measure.layer], jackknife, sizes)
        lines.append(found.told())
    mean = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
    # that of the slope holds the bend of the line, which is the same in each block
    mean["standard_error"] = math.hypot(*(line["standard_error"] for line in lines)) / len(lines)
    return mean


def _told(reference: Reference) -> dict[str, Any]:
    told = asdict(reference.provenance)
    return told | {"images_digest": told["digest"], "digest": reference.digest()}


def warnings(protocol: Protocol, features: Features, n: int) -> list[str]:
    """What a reader of these numbers must know."""
    found = [
        too_few(protocol.shown(name, n), n, features.layers[measure.layer].dim)
        for measure in protocol.measures
        if isinstance(measure, FrechetMeasure)
        for name in measure.titles
    ]
    return [warning for warning in found if warning is not None]


def refuse_guide(protocol: Protocol, weights: Path | None, made: Mapping[str, Any]) -> None:
    """Refuses a judge that guided the samples it is to judge.

    Raises:
        ValueError: When the samples say so.
    """
    if weights is not None and weights.is_file() and sha256_of(weights) in made.get("guides", ()):
        raise ValueError(
            f"{weights} guided these samples, so by {protocol.name!r} it would praise what it "
            "made; give an independent network, trained from another seed or on other data."
        )


def store_of(folder: Path, identity: Identity) -> FeatureStore:
    """A store for features of one extractor.

    Raises:
        ValueError: When it holds those of another.
    """
    note, told = folder / "extractor", str(identity)
    if note.is_file() and note.read_text() != told:
        raise ValueError(
            f"{folder} holds features of {note.read_text()}, these are of {told}; give another "
            "--features folder, or delete it."
        )
    if not note.is_file():
        with whole(note) as part:
            part.write_text(told)
    return FeatureStore(folder)
