"""`results.json`: what was run, and every number that came of it."""

import json
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed

from robustguide.callbacks.data_history import resumed, summed
from robustguide.callbacks.meter import summary, told_by
from robustguide.callbacks.origin import checkpoints_in
from robustguide.callbacks.reporting import Reporting, callbacks_of, run_folder
from robustguide.checkpoints import sha256_of
from robustguide.files import whole
from robustguide.machine.memory import peak_memory

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("robustguide", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


class Results(Callback):
    """Collects what the other callbacks measured and writes it when a run ends.

    Args:
        command: Words that started the run, as they were typed; null where nobody typed.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self.command = None if command is None else list(command)
        self.started = 0.0
        self.resumed: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Notes where training goes on, and how near its data come to an unbroken run's."""
        if trainer.global_step:
            self.resumed = resumed(trainer)
            rank_zero_info(f"Resumed at step {trainer.global_step}; data: {self.resumed['data']}.")

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Writes the file; here, since a process without images to predict does not end its loop.

        A prediction that found all images there leaves the file of the run that made them.
        """
        cost = cost_of(trainer, module)  # all processes tell theirs
        work = work_of(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        bad_shards = None
        if hasattr(data, "bad_shards"):
            bad_shards = summed(of_all(trainer, data.bad_shards))
        if not trainer.is_global_zero or cost is None:
            return
        reports: list[Any] = [c for c in callbacks_of(trainer) if isinstance(c, Reporting)]
        if hasattr(module, "metrics") and hasattr(module, "curves"):
            reports.append(module)  # one that measures something itself, as `Combination`
        results = {
            "run": provenance(trainer, stage)
            | {"command": self.command, "resumed": self.resumed, "ended": now()},
            "metrics": {
                name: value for report in reports for name, value in report.metrics.items()
            },
            "curves": {name: curve for report in reports for name, curve in report.curves.items()},
            "reliability": {
                name: table
                for report in reports
                for name, table in getattr(report, "reliability", {}).items()
            },
            "cost": {
                "seconds": round(time.perf_counter() - self.started, 3),
                "steps": trainer.global_step,
                **cost,
            },
            "work": work,
            **({} if bad_shards is None else {"bad_shards": bad_shards}),
        }
        with whole(run_folder(trainer) / "results.json") as part:
            part.write_text(json.dumps(finite(results), indent=1, allow_nan=False))


def cost_of(trainer: Trainer, module: LightningModule) -> dict[str, Any] | None:
    """Peak memory of the process that needs most; means over the images that all of them made.

    Null for a module that was to make images, and made none.
    """
    memory, kind = memory_of_parts(trainer) or peak_memory(trainer.strategy.root_device)
    evaluated: Any = getattr(module, "evaluated", None)
    mine = (memory, {} if evaluated is None else asdict(evaluated))
    memories, sums = zip(*of_all(trainer, mine), strict=True)
    peak = None if None in memories else max(memories)
    cost: dict[str, Any] = {"peak_memory_bytes": peak, "peak_memory_kind": kind}
    if evaluated is None:
        return cost
    total = {name: sum(part[name] for part in sums) for name in sums[0]}
    images = total.pop("images")
    if images == 0:
        return None
    for name, spent in total.items():
        cost[f"{name}_per_image" if name.endswith("seconds") else name] = spent / images
    return cost


def work_of(trainer: Trainer) -> dict[str, Any] | None:
    """FLOPs and utilisation, see `Meter`; null where nobody counted."""
    return summary([told for each in of_all(trainer, told_by(trainer)) for told in each])


def memory_of_parts(trainer: Trainer) -> tuple[int | None, str] | None:
    """Peak memory of the part that needed most; null where images are not made in parts."""
    parts = getattr(getattr(trainer, "datamodule", None), "parts", None)
    if not parts:
        return None
    needed = [part.facts.get("peak_memory_bytes") for part in parts]
    kind = str(parts[0].facts.get("peak_memory_kind"))
    return (None if None in needed else max(needed)), kind


def of_all(trainer: Trainer, mine: Any) -> list[Any]:
    """What each process has; all of them must ask."""
    parts = [mine]
    if distributed.is_available() and distributed.is_initialized():
        parts *= trainer.world_size
        distributed.all_gather_object(parts, mine)
    return parts


def finite(value: Any) -> Any:
    """The same data with words for what JSON has no numbers for, such as an endless interval."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def provenance(trainer: Trainer, stage: str) -> dict[str, Any]:
    """Configuration, versions, code, devices and hashes of the checkpoints that were named."""
    config = None
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    if any(isinstance(callback, SaveConfigCallback) for callback in callbacks):
        config = yaml.safe_load((run_folder(trainer) / "config.yaml").read_text())
    return {
        "stage": stage,
        "config": config,
        "seed": config and config.get("seed_everything"),
        "versions": {package: version_of(package) for package in PACKAGES},
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": is_dirty(),
        "device": str(trainer.strategy.root_device),
        "world_size": trainer.world_size,
        "checkpoints": {path: sha256_of(path) for path in sorted(set(checkpoints_in(config)))},
    }


def now() -> str:
    """The time of the clock, in UTC, as ISO 8601 writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def version_of(package: str) -> str | None:
    """Installed version; null where it is not installed as a distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_dirty() -> bool | None:
    """Whether the package differs from that commit, new files included; null outside a checkout.

    Files beside the package, such as configurations, tell nothing of the code.
    """
    status = git("status", "--porcelain", "--", str(PACKAGE))
    return None if status is None else bool(status)


def git(*words: str) -> str | None:
    """What git answers of the checkout that this code runs from; null outside one."""
    command = ["git", "-C", str(PACKAGE), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
