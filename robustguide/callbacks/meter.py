"""FLOPs of a run, and what share they are of those that the device could have done.

    utilisation = FLOPs / (seconds * peak)

The peak is that of products of matrices, measured where the run is, in the type of the numbers
that most FLOPs are of. FLOPs are counted while the first batch runs, attacks, guidance and all
gradients included. The others are taken to need as many an image, which is an estimate where work
depends on the image, as that of an attack does which stops early.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from robustguide.callbacks.reporting import callbacks_of
from robustguide.data.parts import Part
from robustguide.machine.flops import Tally
from robustguide.machine.laps import Laps
from robustguide.machine.peak import matmul_peak

TOLD = ("images", "flops", "timed_flops", "seconds", "device_flops")


class Meter(Callback):
    """Counts and times the steps of a run; of a training, those that train.

    A step alone, without what loads the data and what other callbacks measure. It is first among
    the callbacks for that. The counted batch takes longer, so that the others are timed, if there
    are any. Nothing waits for the device.
    """

    def __init__(self) -> None:
        self._begin(torch.device("cpu"))

    def _begin(self, device: torch.device) -> None:
        self.images = self.counted = 0
        self.tally, self.block = Tally(), ExitStack()
        self.is_counting = False
        self.first, self.others = Laps(device), Laps(device)
        self.parts: list[Mapping[str, Any] | None] = []

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Nothing yet."""
        self._begin(trainer.strategy.root_device)

    def start(self, trainer: Trainer, stage: str, batch: Any) -> None:
        """A step begins."""
        if trainer.state.fn != stage or isinstance(batch, Part):
            return
        if self.images:
            self.others.start()
            return
        self.first.start()
        self.block.enter_context(self.tally)
        self.is_counting = True

    def stop(self, trainer: Trainer, stage: str, batch: Any) -> None:
        """A step has ended."""
        if trainer.state.fn != stage:
            return
        if isinstance(batch, Part):
            self.parts.append(batch.facts.get("work"))
            return
        rows = rows_of(batch)
        if self.is_counting:
            self.close()
            self.first.stop()
            self.counted = rows
            if self.tally.unknown:
                rank_zero_warn(
                    f"The FLOPs of {', '.join(sorted(self.tally.unknown))} are not known, so "
                    "those of this run are not either, nor its utilisation."
                )
        else:
            self.others.stop()
        self.images += rows

    def close(self) -> None:
        """Counts no more."""
        self.is_counting = False
        self.block.close()

    def told(self) -> list[dict[str, Any]]:
        """What this process did, and what the parts did that it put together.

        FLOPs are null where they are not known, and `device_flops`, those that the device could
        have done in `seconds`, where its peak is not.
        """
        own = [self.work()] if self.images else []
        return own + [
            dict(part) if part else dict.fromkeys((*TOLD, "dtype")) for part in self.parts
        ]

    def work(self) -> dict[str, Any]:
        """What this process did."""
        found = self.tally.by_dtype
        each = None if self.tally.unknown else self.tally.flops / self.counted
        is_alone = self.images == self.counted
        timed = self.images - (0 if is_alone else self.counted)
        seconds = (self.first if is_alone else self.others).seconds
        dtype = max(found, key=found.__getitem__, default=None)
        peak = None if dtype is None else matmul_peak(self.first.device, dtype)
        return {
            "images": self.images,
            "flops": None if each is None else each * self.images,
            "timed_flops": None if each is None else each * timed,
            "seconds": seconds,
            "device_flops": None if peak is None else peak * seconds,
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        }

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """See `close`."""
        self.close()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, error: BaseException
    ) -> None:
        """See `close`."""
        self.close()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See `start`."""
        self.start(trainer, "fit", batch)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See `stop`."""
        self.stop(trainer, "fit", batch)

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, *place: int
    ) -> None:
        """See `start`."""
        self.start(trainer, "validate", batch)

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *place: int
    ) -> None:
        """See `stop`."""
        self.stop(trainer, "validate", batch)

    def on_test_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, *place: int
    ) -> None:
        """See `start`."""
        self.start(trainer, "test", batch)

    def on_test_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *place: int
    ) -> None:
        """See `stop`."""
        self.stop(trainer, "test", batch)

    def on_predict_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, *place: int
    ) -> None:
        """See `start`."""
        self.start(trainer, "predict", batch)

    def on_predict_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *place: int
    ) -> None:
        """See `stop`."""
        self.stop(trainer, "predict", batch)


def told_by(trainer: Trainer) -> list[dict[str, Any]]:
    """What this process did, see `Meter.told`; nothing where nobody counted."""
    return [told for c in callbacks_of(trainer) if isinstance(c, Meter) for told in c.told()]


def summary(told: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """All processes and parts as one: what stands in `results.json`; null where nothing ran."""
    if not told:
        return None
    total = {name: whole_sum([each[name] for each in told]) for name in TOLD}
    images, flops, seconds = total["images"], total["flops"], total["seconds"]
    could, timed = total["device_flops"], total["timed_flops"]
    return {
        "flops": flops,
        "flops_per_image": flops / images if flops is not None and images else None,
        "images": images,
        "dtype": next((each["dtype"] for each in told if each["dtype"]), None),
        "step_seconds": seconds,
        "matmul_peak": could / seconds if could is not None and seconds else None,
        "utilisation": timed / could if timed is not None and could else None,
    }


def whole_sum(values: Sequence[float | None]) -> float | None:
    """Null where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def rows_of(batch: Any) -> int:
    """Images in a batch: rows of its first tensor; of anything else, one."""
    return next((len(each) for each in tensors_in(batch) if each.ndim), 1)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)
