"""What a step of a configuration takes on the device that is here: seconds and memory.

The networks have random weights and the images are noise, so neither weights nor data are needed.
"""

import logging
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

from robustguide.cards import cards
from robustguide.machine.laps import clock
from robustguide.machine.memory import bound, forget_peak, held, peak_memory
from robustguide.modules import (
    Denoising,
    FreeClassification,
    Generation,
    RobustClassification,
)
from robustguide.plans.capacity import free, has_room, largest
from robustguide.plans.cost import Configuration, built, precision_of, to_the_end
from robustguide.specification import call

P = ParamSpec("P")
T = TypeVar("T")
STEPS = 2  # the first warms up
CLIPPING = ("gradient_clip_val", "gradient_clip_algorithm")


@dataclass(frozen=True)
class Measured:
    """What one step took.

    Attributes:
        device: On which it ran.
        batch: Images in it.
        seconds: Of the second step; the first one warms up.
        peak_bytes: Most memory during both steps; null where the system does not tell.
        before_bytes: Of the same kind, right before the first one.
        kind: What memory that is.
    """

    device: str
    batch: int
    seconds: float
    peak_bytes: int | None
    before_bytes: int | None
    kind: str

    @property
    def images_a_second(self) -> float:
        """Of the second step."""
        return self.batch / self.seconds

    @property
    def step_bytes(self) -> int | None:
        """What the steps added; null where the system does not tell."""
        if self.peak_bytes is None or self.before_bytes is None:
            return None
        return self.peak_bytes - self.before_bytes


def measured(configuration: Configuration, batch: int | None = None) -> Measured:
    """Runs two steps, in a process of their own.

    Raises:
        ValueError: They do not fit into memory, or it is not said how large they are.
    """
    size = batch or batch_size(configuration)
    found: list[Measured] = []
    if not has_room(lambda rows: found.append(alone(measure, configuration, rows)))(size):
        raise ValueError(
            f"A batch of {size:,} does not fit into memory; give a smaller --batch-size, or "
            "--largest-batch to find the one that does."
        )
    return found[0]


def largest_batch(configuration: Configuration, limit: int | None = None) -> Measured:
    """Measures the largest batch that fits; each trial is a process of its own.

    Args:
        configuration: Samples or trains.
        limit: Bytes, of the kind that is measured; null for all memory of the GPU.

    Raises:
        ValueError: Not even one image fits, or there is no limit on the CPU.
    """
    if limit is None and not torch.cuda.is_available():
        raise ValueError(
            "On the CPU a batch that is too large would take the memory of everything else; give "
            "--memory-limit, such as 8GB."
        )
    found: dict[int, Measured] = {}

    def run(batch: int) -> None:
        each = alone(measure, configuration, batch, limit)
        if limit is not None and (each.peak_bytes or 0) > limit:
            raise MemoryError
        found[batch] = each

    batch = largest(has_room(run))
    if not batch:
        raise ValueError("Not even a batch of 1 fits into memory; give a larger --memory-limit.")
    return found[batch]


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a function in a fresh process, whose peak of memory is that of nothing else.

    Raises:
        ChildProcessError: The process was ended.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), quiet) as pool:
        try:
            return pool.submit(work, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "The process that measures was ended, as a system does that has no memory left; "
                "give a smaller --batch-size or --memory-limit."
            ) from error


def quiet() -> None:
    """Lightning says nothing of its devices."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def measure(configuration: Configuration, batch: int, limit: int | None = None) -> Measured:
    """Runs two steps in this process; see `measured`.

    Args:
        configuration: Samples or trains.
        batch: Images in a step.
        limit: Bytes; see `bound`.

    Raises:
        RuntimeError: Memory was refused.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = built(LightningModule, drawn(configuration.model), torch.device("cpu"))
    rows = rows_of(model, configuration, batch)
    batches: Any = [rows] * STEPS
    loader = DataLoader(batches, batch_size=None, collate_fn=as_it_is)
    if isinstance(model, RobustClassification):
        model.attack = to_the_end(model.attack)
    model.to(device)
    watch = Watch(device)
    clipping: dict[str, Any] = {key: configuration.trainer.get(key) for key in CLIPPING}
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        precision=precision_of(configuration.trainer),  # type: ignore[arg-type]  # a literal
        max_epochs=1,  # of all batches; free training makes several steps of each
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        inference_mode=False,
        plugins=[LightningEnvironment()],  # one process, within a job of SLURM too
        **clipping,
    )
    free()
    forget_peak(device)
    before = held(device)
    with bound(limit, device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        if isinstance(model, Generation):
            trainer.predict(model, loader, return_predictions=False)
        else:
            trainer.fit(model, loader)
    peak, kind = peak_memory(device)
    passes = model.replays if isinstance(model, FreeClassification) else 1
    return Measured(name_of(device), batch, watch.seconds[-1] / passes, peak, before, kind)


def batch_size(configuration: Configuration) -> int:
    """Images in a step of the configuration.

    Raises:
        ValueError: It does not say.
    """
    said = ((configuration.data or {}).get("init_args") or {}).get("batch_size")
    if said is None:
        raise ValueError("The configuration has no data.batch_size; give --batch-size.")
    return int(said)


def drawn(value: Any) -> Any:
    """A specification in which networks of cards have no file, and so random weights."""
    if isinstance(value, list):
        return [drawn(part) for part in value]
    if not isinstance(value, dict):
        return value
    if (found := call(value)) is not None:
        said, name = found.arguments, found.class_path.rpartition(".")[2]
        if name.startswith("load_") and said.get("card") in cards() and said.get("path") is None:
            return dict(cards()[said["card"]].specification)
    return {key: drawn(part) for key, part in value.items()}


def rows_of(
    model: LightningModule, configuration: Configuration, batch: int
) -> tuple[Tensor, ...]:
    """A batch: numbers and labels of images to sample, or noise to train on."""
    index = torch.arange(batch)
    if isinstance(model, Generation):
        return index, index % max(model.denoiser.num_classes, 1)
    assert isinstance(model, RobustClassification | Denoising)
    network = model.classifier if isinstance(model, RobustClassification) else model.denoiser
    data = built(LightningDataModule, configuration.data or {})
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(batch, *data.shape, generator=generator) * 2 - 1
    return x_0, index % max(network.num_classes, 1), index


def as_it_is(batch: Any) -> Any:
    """A tuple stays a tuple."""
    return batch


class Watch(Callback):
    """Takes the time of steps.

    Args:
        device: A GPU is waited for.

    Attributes:
        seconds: Of each step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.start = device, list[float](), 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Begins."""
        self.start = clock(self.device)

    def on_train_batch_end(self, *args: Any) -> None:
        """Ends, with the step of the optimizer."""
        self.seconds.append(clock(self.device) - self.start)

    def on_predict_batch_start(self, *args: Any) -> None:
        """Begins."""
        self.start = clock(self.device)

    def on_predict_batch_end(self, *args: Any) -> None:
        """Ends."""
        self.seconds.append(clock(self.device) - self.start)


def name_of(device: torch.device) -> str:
    """As people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
