"""Quality of generated images by a named protocol: of the finished ones, and along the way."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from robustguide.callbacks.judging import refuse_guides
from robustguide.callbacks.references import kept_reference, reference_of
from robustguide.callbacks.reporting import Reporting, callbacks_of, is_part, publish, run_folder
from robustguide.callbacks.results import of_all
from robustguide.callbacks.trajectory import Along, features_of
from robustguide.checkpoints.extractors import load_extractor
from robustguide.checkpoints.references import with_activations
from robustguide.data.parts import Part
from robustguide.interfaces import to_pixels
from robustguide.metrics.agreement import ClassAccuracy
from robustguide.metrics.distances import FrechetMeasure, too_few
from robustguide.metrics.extractor import Extractor
from robustguide.metrics.features import ClassifierFeatures
from robustguide.metrics.jackknife import groups_of
from robustguide.metrics.protocol import Measured, Protocol, Sampled
from robustguide.metrics.protocols import protocol as protocol_of
from robustguide.metrics.protocols.classifier_features import OWN
from robustguide.metrics.reference import Reference
from robustguide.metrics.stores import FeatureStore
from robustguide.report import figures

ALONG = "along."  # before the levels in the features of a part
T = TypeVar("T")


class Quality(Reporting):
    """Measures finished images by a protocol, and the predicted clean ones on the way.

    Images are rounded to bytes once. Features of the finished ones go to disk, below the run
    folder, until they are measured: memory does not grow with the number of images. Along the way
    there are sums alone, of the protocol's first Frechet distance, or of its mean cosine. Numbers
    do not depend on the number of processes, and each image counts once.

    Where images are not finite, since sampling diverged, nothing is measured, and a warning says
    so.

    Args:
        protocol: Name of one of `robustguide.metrics.protocols`; null with an extractor.
        weights: File of its network; null is the file of its card, or the demo's.
        reference: File of the real images' statistics, of `robustguide stats` or as published;
            null makes them from the data module's reference images, in every process. So does a
            .safetensors file that is not there; it is written, and the runs after read it.
        along: Whether the predicted clean images are measured.
        batch_size: Images at a time, in the extractor.
        extractor: Network of one's own in place of a protocol: Frechet distance of its
            features, with its name in the key. "classifier_features" measures more.

    Raises:
        ValueError: When not exactly one of protocol and extractor is given; weights, which an
            extractor has, with an extractor; a name that no protocol has; a batch of none.
    """

    def __init__(
        self,
        protocol: str | None = None,
        weights: str | None = None,
        reference: str | None = None,
        along: bool = True,
        batch_size: int = 100,
        extractor: ClassifierFeatures | None = None,
    ) -> None:
        super().__init__()
        if (protocol is None) == (extractor is None):
            raise ValueError(
                "Quality needs either the name of a protocol, such as protocol: adm, or an "
                f"extractor of your own; got protocol={protocol!r} and "
                f"extractor={type(extractor).__name__ if extractor else None}."
            )
        if extractor is not None and weights is not None:
            raise ValueError(f"The extractor has its weights; leave out weights={weights!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size is a number of images, at least 1; got {batch_size}.")
        self.protocol = own_protocol(extractor) if extractor else protocol_of(protocol or "")
        self.weights, self.reference_file = weights, reference
        self.along, self.batch_size = along, batch_size
        self.extractor: Extractor | None = extractor
        self.reference: Reference | None = None
        self.store: FeatureStore | None = None
        self.sums: Along | None = None
        self.broken: Tensor | None = None
        self.place = Path("features", self.protocol.name)  # in the run folder
        self.is_part = False

    @property
    def state_key(self) -> str:
        """Tells it from one of another protocol."""
        return f"Quality/{self.protocol.name}"

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Opens network and reference, so that what is missing shows before anything is sampled.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: Two callbacks measure the same; the reference is of another protocol,
                extractor or resize, or of other images; the judge of a class accuracy guides.
        """
        if stage != "test":
            return
        others = [each for each in callbacks_of(trainer) if isinstance(each, Quality)]
        if [each.protocol.name for each in others].count(self.protocol.name) > 1:
            raise ValueError(
                f"Two Quality callbacks measure {self.protocol.name!r}, and their numbers would "
                "have one name; leave one out, or name the extractors differently."
            )
        if self.extractor is None:
            names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
            self.extractor = load_extractor(self.protocol, self.weights, class_names=names)
        if any(isinstance(measure, ClassAccuracy) for measure in self.protocol.measures):
            refuse_guides(self.extractor, dict(getattr(module, "guidance", {}).items()))
        if self.reference_file is not None:
            data = getattr(trainer, "datamodule", None)
            self.reference = kept_reference(self.reference_file, data, self.protocol)
            if self.reference is not None:
                self.protocol.require(self.reference, self.extractor.identity)

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Makes the reference where there is none, and begins the sums."""
        assert self.extractor is not None
        extractor = self.extractor.to(module.device)
        self.store = FeatureStore(run_folder(trainer) / self.place)
        if trainer.is_global_zero:
            self.store.clear()
        trainer.strategy.barrier()  # before another process writes
        self.is_part = is_part(trainer)
        if not self.is_part:
            self.reference = self._real(trainer, extractor)
        generation: Any = module
        levels = len(generation.levels) if self.along else 0
        self.sums = Along.of(self.protocol, self.reference, levels, module.device)
        self.broken = torch.zeros(1 + levels, dtype=torch.long, device=module.device)

    def _real(self, trainer: Trainer, extractor: Extractor) -> Reference | None:
        """The reference with all that the protocol compares; null where it compares nothing."""
        if self.reference_file is not None and self.reference is not None:
            return with_activations(self.reference, extractor, self.protocol, self.batch_size)
        if all(measure.needs == "nothing" for measure in self.protocol.measures):
            return None
        data = getattr(trainer, "datamodule", None)
        made = reference_of(data, self.protocol, extractor, self.batch_size)
        if self.reference_file is not None and trainer.is_global_zero:
            made.save(self.reference_file)
        return made

    def add(self, module: Any, outputs: Any) -> None:
        """Adds a batch."""
        assert self.store is not None and self.broken is not None and self.extractor is not None
        images, y = outputs["images"], outputs["y"]
        self.broken[0] += broken(images)
        pixels = to_pixels(images)
        layers = features_of(self.extractor, pixels, y, self.batch_size)
        if self.sums is not None:
            with module.watching():
                denoised = outputs["denoised"]
                self.broken[1:] += torch.stack([broken(level) for level in denoised])
                read = self.sums.read(self.extractor, denoised, y, self.batch_size, pixels, layers)
                if self.is_part:  # as features, which take less than the sums of a part do
                    layers = layers | {f"{ALONG}{k}": each for k, each in enumerate(read)}
                else:
                    self.sums.add(read)
        self.store.add(outputs["index"], layers, y)

    def state(self) -> dict[str, Tensor]:
        """How many images are not finite; features are on disk."""
        return {} if self.broken is None else {"broken": self.broken}

    def absorb(self, part: Part) -> None:
        """Adds a part's features, batch by batch as they were made."""
        assert self.store is not None and self.broken is not None
        self.broken += part.states[self.state_key]["broken"].to(self.broken)
        for index, layers, y in FeatureStore(part.folder / self.place).chunks():
            finished = {k: each for k, each in layers.items() if not k.startswith(ALONG)}
            self.store.add(index, finished, y)
            if self.sums is not None:
                levels = range(len(layers) - len(finished))
                self.sums.add([layers[f"{ALONG}{k}"] for k in levels])

    def conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Measures and logs; frees the disk and the extractor's device memory."""
        assert self.store is not None and self.broken is not None and self.extractor is not None
        trainer.strategy.barrier()  # the other processes' features
        broken = [sum(each) for each in zip(*of_all(trainer, self.broken.tolist()), strict=True)]
        found = by_the_first(trainer, partial(self._measured, broken[0]))
        for name, facts in found.items():
            self.measured(module, "test", self.protocol.key(name), **facts)
            if "warning" in facts:
                rank_zero_warn(facts["warning"])
        if self.sums is not None:
            self._curve(trainer, module, self.sums, broken[1:])
        if trainer.is_global_zero:
            self.store.clear()
            with suppress(OSError):  # another protocol's features are there
                self.store.folder.parent.rmdir()
        self.extractor.to("cpu")

    def _measured(self, broken: int) -> dict[str, dict[str, Any]]:
        """Facts of all numbers by name, as plain data; `value` is null of what cannot be told."""
        assert self.store is not None
        stored = self.store.finish()
        n = len(stored.index)
        groups = groups_of(stored.index)
        sampled = Sampled(stored.layers, groups, stored.y)
        found = {}
        for measure in self.protocol.measures:
            try:
                if broken:
                    raise ValueError(f"{broken} of {n} images are not finite: sampling diverged.")
                numbers = measure.measure(sampled, self.reference)
                facts = {name: told(number) for name, number in numbers.items()}
            except ValueError as error:  # the samples are made: the other numbers are worth it
                facts = {
                    name: {"value": None, "warning": f"{self.protocol.shown(name, n)}: {error}"}
                    for name in measure.titles
                }
            dim = stored.layers[measure.layer].dim
            for name, each in facts.items():
                found[name] = self._told(name, n, measure.lower_is_better[name]) | each
                if isinstance(measure, FrechetMeasure):
                    if warning := too_few(found[name]["shown"], n, dim):
                        found[name].setdefault("warning", warning)
        return found

    def _told(self, name: str, n: int, lower_is_better: bool) -> dict[str, Any]:
        """What is known of a number before it is."""
        assert self.extractor is not None
        facts = {
            "n": n,
            "shown": self.protocol.shown(name, n),
            "lower_is_better": lower_is_better,
            "extractor": str(self.extractor.identity),
        }
        if self.reference is None:
            return facts
        provenance = self.reference.provenance
        images = {"images_digest": provenance.digest, "digest": self.reference.digest()}
        return facts | {
            "reference": asdict(provenance) | images,
            "reference_n": provenance.count,
        }

    def _curve(self, trainer: Trainer, module: Any, sums: "Along", broken: list[int]) -> None:
        """A number at each watched level."""
        key = self.protocol.key(sums.name)
        found = sums.compute()
        values = [math.nan if lost else v for v, lost in zip(found, broken, strict=True)]
        levels, series = list(module.levels), {key: values}
        self.curve(trainer, "test", key, levels, series)
        draw = partial(figures.curves, levels, series, ylabel=key)
        publish(trainer, f"test/{key}_by_noise", draw)


def own_protocol(extractor: ClassifierFeatures) -> Protocol:
    """The protocol of a network of one's own: the Frechet distance alone, which is additive."""
    distance = FrechetMeasure("frechet", "FD", "features")
    return replace(
        OWN, name=extractor.name, network=extractor.identity.network, measures=(distance,)
    )


def told(measured: Measured) -> dict[str, Any]:
    """A number with its interval and what else defines it, as plain data."""
    facts: dict[str, Any] = {"value": measured.value, **measured.facts}
    if (interval := measured.interval()) is not None:
        facts |= {"interval": list(interval), "replicates": list(measured.replicates)}
    return facts


def broken(images: Tensor) -> Tensor:
    """How many images have values that are no numbers; as bytes they would look like others."""
    return (~images.isfinite().flatten(1).all(1)).sum()


def by_the_first(trainer: Trainer, make: Callable[[], T]) -> T:
    """What the first process makes, in all processes; all of them must ask.

    An error of it is an error of all, so that none waits for ever.
    """
    mine: tuple[T | None, Exception | None] = None, None
    if trainer.is_global_zero:
        try:
            mine = make(), None
        except Exception as error:  # told to the others, and raised
            mine = None, error
    made, failure = trainer.strategy.broadcast(mine)
    if failure is not None:
        raise failure
    return made  # type: ignore[return-value]  # without a failure it is there
