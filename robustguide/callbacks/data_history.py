"""What happened to a run's data: shards that could not be read, and where it was resumed."""

from collections.abc import Sequence
from typing import Any

from lightning import Trainer

COUNTS = ("retried", "skipped")


def resumed(trainer: Trainer) -> dict[str, Any]:
    """The step at which training goes on, the checkpoint, and what the data promise of it."""
    data: Any = getattr(trainer, "datamodule", None)
    return {
        "step": trainer.global_step,
        "checkpoint": trainer.ckpt_path and str(trainer.ckpt_path),
        "data": getattr(data, "resume", "not stated by the data module"),
    }


def summed(reports: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """How often each shard was tried again or skipped, in all processes since the last start."""
    total: dict[str, dict[str, Any]] = {}
    for report in reports:
        for shard, facts in report.items():
            known = total.setdefault(shard, dict.fromkeys(COUNTS, 0))
            known.update({what: known[what] + facts[what] for what in COUNTS})
            known["error"] = facts["error"]
    return dict(sorted(total.items()))
