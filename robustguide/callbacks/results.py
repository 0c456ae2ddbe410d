"""`results.json`: what was run, and every number that came of it."""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from robustguide.callbacks.reporting import Reporting, callbacks_of, run_folder
from robustguide.checkpoints import cards, sha256_of
from robustguide.checkpoints.cards import present
from robustguide.files import whole

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".pkl")
PACKAGES = ("robustguide", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


class Results(Callback):
    """Collects what the other callbacks measured and writes it when a run ends."""

    def __init__(self) -> None:
        self.started = 0.0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the file."""
        self._write(trainer, module, "fit")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the file, where validation is the run and not a part of training."""
        if trainer.state.fn == "validate":
            self._write(trainer, module, "validate")

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the file."""
        self._write(trainer, module, "test")

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the file."""
        self._write(trainer, module, "predict")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        reports = [c for c in callbacks_of(trainer) if isinstance(c, Reporting)]
        results = {
            "run": provenance(trainer, stage),
            "metrics": {
                name: value for report in reports for name, value in report.metrics.items()
            },
            "curves": {name: curve for report in reports for name, curve in report.curves.items()},
            "cost": self._cost(trainer, module),
        }
        with whole(run_folder(trainer) / "results.json") as part:
            part.write_text(json.dumps(finite(results), indent=1, allow_nan=False))

    def _cost(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        cost: dict[str, Any] = {"seconds": round(time.perf_counter() - self.started, 3)}
        cost["steps"] = trainer.global_step
        if torch.cuda.is_available():
            cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        evaluated: Any = getattr(module, "evaluated", None)
        if evaluated is not None:
            rows = asdict(evaluated)
            images = max(rows.pop("images"), 1)
            cost |= {f"{name}_evaluations": count / images for name, count in rows.items()}
        return cost


def finite(value: Any) -> Any:
    """The same data with words for what JSON has no numbers for, such as an endless interval."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def provenance(trainer: Trainer, stage: str) -> dict[str, Any]:
    """Configuration, versions, commit, devices and hashes of the checkpoints that were named."""
    config = None
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    if any(isinstance(callback, SaveConfigCallback) for callback in callbacks):
        config = yaml.safe_load((run_folder(trainer) / "config.yaml").read_text())
    return {
        "stage": stage,
        "config": config,
        "seed": config and config.get("seed_everything"),
        "versions": {package: version_of(package) for package in PACKAGES},
        "git_commit": git_commit(),
        "device": str(trainer.strategy.root_device),
        "world_size": trainer.world_size,
        "checkpoints": {path: sha256_of(path) for path in sorted(set(checkpoints_in(config)))},
    }


def version_of(package: str) -> str | None:
    """Installed version; null where it is not installed as a distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from; null outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def checkpoints_in(config: Any) -> Iterator[str]:
    """Paths of checkpoint files in a configuration, and of those that its cards stand for."""
    if isinstance(config, dict):
        of = cards().get(config.get("card") or "") if not config.get("path") else None
        if of is not None and (file := present(of)) is not None:
            yield str(file)
        for value in config.values():
            yield from checkpoints_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from checkpoints_in(value)
    elif isinstance(config, str) and config.endswith(SUFFIXES):
        if Path(config).is_file():
            yield config
