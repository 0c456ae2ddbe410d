"""Time that a device works: seen by a host that waits, or noted without waiting."""

import time
from typing import Any

import torch


def clock(device: torch.device) -> float:
    """Seconds, when the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class Laps:
    """Sums the time of blocks that follow each other.

    On the CPU it is that of the host; other devices note themselves when they come to the two
    ends of a block, so that the host goes on. Between blocks a device may have nothing to do.

    Args:
        device: Works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sum = 0.0
        self.open: list[tuple[Any, Any]] = []
        self.began: Any = None

    def start(self) -> None:
        """A block begins."""
        self.began = self._now()

    def stop(self) -> None:
        """It ends."""
        self.open.append((self.began, self._now()))
        while self.open and (self.device.type == "cpu" or self.open[0][1].query()):
            self._add(*self.open.pop(0))

    @property
    def seconds(self) -> float:
        """Of all blocks; waits for the last one."""
        for began, ended in self.open:
            ended.synchronize()
            self._add(began, ended)
        self.open = []
        return self.sum

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.get_device_module(self.device).Event(enable_timing=True)
        event.record()
        return event

    def _add(self, began: Any, ended: Any) -> None:
        is_cpu = self.device.type == "cpu"
        self.sum += ended - began if is_cpu else began.elapsed_time(ended) / 1000
