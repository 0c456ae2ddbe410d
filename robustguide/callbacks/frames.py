"""What sampling looks like on the way: states, predicted clean images and guidance of a few."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, distributed

from robustguide.callbacks.reporting import Reporting, callbacks_of, publish, run_folder
from robustguide.data.parts import Part
from robustguide.files import whole
from robustguide.interfaces import to_pixels
from robustguide.report import sheets
from robustguide.samplers import Observation

FILE = "frames.safetensors"
EACH_IMAGE = ("x", "denoised", "displacement", "y")  # by image; the others are by step


class Look(NamedTuple):
    """The kept images at a chosen step, on the host.

    Attributes:
        step: Number of the step.
        sigma: Its noise level.
        x: State at unit variance, x / sqrt(1 + sigma^2).
        denoised: Clean image that the sampler goes towards, in the denoiser's space.
        displacement: By all terms of the guidance, in units of x_0; it holds no clipping.
    """

    step: int
    sigma: float
    x: Tensor
    denoised: Tensor
    displacement: Tensor


class Frames(Reporting):
    """Keeps the first images of a test at some steps of sampling, and draws the first of them.

    It only reads: the images are the same with it and without. The host waits for the device at
    the chosen steps only, and only in batches that hold a kept image. `frames.safetensors` has,
    for n images and s steps, `x` (n, s, c, h, w) float16 at unit variance, `denoised` as bytes (of
    latents, decoded), `displacement` float32 by all terms of the guidance in units of x_0, `index`
    and `y` (n,), `step` and `sigma` (s,). An image of 128 px takes 2 MB at six steps.

    Args:
        count: Images kept, those of the lowest numbers.
        steps: Steps of the run, evenly spread, the first and the last among them.

    Raises:
        ValueError: For fewer than one image or two steps.
    """

    def __init__(self, count: int = 4, steps: int = 6) -> None:
        super().__init__()
        if count < 1 or steps < 2:
            raise ValueError(
                "Frames keeps at least 1 image at 2 steps or more, got "
                f"count={count} and steps={steps}."
            )
        self.count, self.steps = count, steps
        self.rows = 0
        self.looks: list[Look] = []
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.levels: dict[int, float] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Looks over the sampler's shoulder.

        Raises:
            ValueError: In a test of a module that shows no steps, or beside another one.
        """
        if stage != "test":
            return
        watchers: Any = getattr(module, "watchers", None)
        if watchers is None:
            raise ValueError(
                f"Frames shows the steps of sampling, of which {type(module).__name__} has none; "
                "use it in a test of robustguide.modules.Generation."
            )
        if sum(isinstance(each, Frames) for each in callbacks_of(trainer)) > 1:
            raise ValueError(
                f"trainer.callbacks has more than one Frames, which would write one {FILE}; keep "
                "one, with the largest count and steps. Configurations may bring it along, as "
                "configs/overlay/digits_generation.yaml does."
            )
        watchers.append(self.watch)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Looks no longer."""
        watchers: Any = getattr(module, "watchers", [])
        if self.watch in watchers:
            watchers.remove(self.watch)

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forgets the last run's."""
        self.kept, self.levels = {}, {}

    def on_test_batch_start(
        self,
        trainer: Trainer,
        module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """How many rows of the batch are kept."""
        images = 0 if isinstance(batch, Part) else len(batch[0])
        self.rows, self.looks = min(images, self.count - len(self.kept)), []

    def watch(self, step: Observation) -> None:
        """Copies what is kept to the host, at chosen steps."""
        place = step.place
        if self.rows == 0 or place.index not in chosen(place.count, self.steps):
            return
        sigma, rows = place.sigma, slice(self.rows)
        assert sigma is not None  # a sampler has one level for all rows
        x = step.x[rows] / (1 + sigma**2) ** 0.5
        shown = (x, step.denoised[rows], step.displacement[rows])
        self.looks.append(Look(place.index, sigma, *(each.float().cpu() for each in shown)))

    def add(self, module: Any, outputs: Any) -> None:
        """Keeps the rows of a batch; latents are decoded here, outside of sampling."""
        if not self.looks:
            return
        denoised = []
        for look in self.looks:
            shown = look.denoised
            if module.codec is not None:
                shown = module.shown(shown.to(module.device)).cpu()
            denoised.append(to_pixels(shown))
        stacked = {
            "x": torch.stack([look.x.half() for look in self.looks], 1),
            "denoised": torch.stack(denoised, 1),
            "displacement": torch.stack([look.displacement for look in self.looks], 1),
            "y": outputs["y"][: self.rows].cpu(),
        }
        self.levels = {look.step: look.sigma for look in self.looks}
        for row, index in enumerate(outputs["index"][: self.rows].tolist()):
            self.kept[index] = {name: each[row] for name, each in stacked.items()}
        self.rows, self.looks = 0, []

    def state(self) -> dict[str, Tensor]:
        """The file's tensors, of what this process kept."""
        return gathered(self.kept, self.levels, self.count)

    def absorb(self, part: Part) -> None:
        """Takes in what a part kept; there may be more than `count` until all is put together."""
        found = part.states[self.state_key]
        steps, sigmas = found["step"].tolist(), found["sigma"].tolist()
        self.levels = dict(zip(steps, sigmas, strict=True))
        for row, index in enumerate(found["index"].tolist()):
            self.kept[index] = {name: found[name][row] for name in EACH_IMAGE}

    def conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the file, and publishes the first image."""
        mine = (self.kept, self.levels)
        parts = [mine]
        if distributed.is_available() and distributed.is_initialized():
            parts *= trainer.world_size
            distributed.all_gather_object(parts, mine)
        kept = {index: image for images, _ in parts for index, image in images.items()}
        levels = {step: sigma for _, found in parts for step, sigma in found.items()}
        if not trainer.is_global_zero or not kept:
            return
        tensors = gathered(kept, levels, self.count)
        with whole(run_folder(trainer) / FILE) as part:
            save_file(tensors, part)
        draw = partial(
            sheets.trajectory,
            tensors["x"][0].float(),
            tensors["denoised"][0].float() / 127.5 - 1,
            tensors["displacement"][0],
            tensors["sigma"].tolist(),
        )
        publish(trainer, "test/frames", draw)


def chosen(count: int, wanted: int) -> list[int]:
    """Evenly spread steps of a run, both ends included."""
    places = np.linspace(0, count - 1, min(wanted, count)).round()
    steps: list[int] = places.astype(int).tolist()
    return steps


def gathered(
    kept: dict[int, dict[str, Tensor]], levels: dict[int, float], count: int
) -> dict[str, Tensor]:
    """The tensors of the file, of the images of the lowest numbers; none of no image."""
    index = sorted(kept)[:count]
    if not index:
        return {}
    named = {name: torch.stack([kept[each][name] for each in index]) for name in EACH_IMAGE}
    return {
        **named,
        "index": torch.tensor(index, device="cpu"),
        "step": torch.tensor(list(levels), device="cpu"),
        "sigma": torch.tensor(list(levels.values()), dtype=torch.float64, device="cpu"),
    }
