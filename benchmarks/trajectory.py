"""What reading along a trajectory costs beside the denoiser: `python benchmarks/trajectory.py`.

Samples a configuration, in the batches that it says, and times in one run the denoiser, the
decoding of latents, and what is measured on the way, each apart: the observer, the features of the
predicted clean images and the sums of both. The finished images' own features count for neither.
Beside the time on the clock stands that of the processors, which other programs disturb less.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from robustguide.main import run
from robustguide.modules import Generation
from robustguide.modules.cost import clock

CONFIG = "configs/test/fashion_mnist.yaml"
LARGEST = 0.10  # of the denoiser's time, for ten levels


class Spent:
    """Seconds of blocks, on the clock and of all processors."""

    def __init__(self) -> None:
        self.wall = self.processors = 0.0

    @contextmanager
    def block(self, device: torch.device) -> Iterator[None]:
        """Adds the time of a block."""
        start, busy = clock(device), time.process_time()
        yield
        self.wall += clock(device) - start
        self.processors += time.process_time() - busy


def main() -> int:
    """Prints seconds and shares; 1 where reading along costs more than it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=CONFIG, help="of a generation")
    parser.add_argument("--count", type=int, default=300, help="images")
    parser.add_argument("--levels", type=int, default=10, help="watched")
    parser.add_argument("--threads", type=int, default=2)
    given, more = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    told = {"data.count": given.count, "model.watched_steps": given.levels}
    told["data.reference_split"] = "test"  # fewer real images to read before anything is timed
    words = [f"--{key}={value}" for key, value in told.items()]
    spent = {"denoiser": Spent(), "reading along": Spent(), "decoding": Spent()}
    with tempfile.TemporaryDirectory() as folder, watched(spent):
        place = [f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
        cli = run(["test", "--config", given.config, *words, *place, *more])
    images: int = cli.model.evaluated.images  # type: ignore[union-attr, assignment]
    print(f"{given.config}: {images} images, {given.levels} levels, {given.threads} threads")
    whole = spent["denoiser"]
    for name, part in spent.items():
        shares = part.wall / whole.wall, part.processors / whole.processors
        print(
            f"{name:<14} {part.wall:8.2f} s {1e3 * part.wall / images:9.3f} ms/image "
            f"{shares[0]:7.2%} of the denoiser; of processors {part.processors:8.2f} s "
            f"{shares[1]:7.2%}"
        )
    return int(spent["reading along"].wall > LARGEST * whole.wall)


@contextmanager
def watched(spent: dict[str, Spent]) -> Iterator[None]:
    """Puts a clock before the denoiser of a generation, its codec, and what reads along."""
    setup: Any = Generation.setup

    def with_clock(module: Generation, stage: str) -> None:
        setup(module, stage)
        for owner, method, name in (
            (module.denoiser, "predict", "denoiser"),
            (module.codec, "decode", "decoding"),
        ):
            if owner is not None:
                setattr(owner, method, timed(getattr(owner, method), spent[name], module))
        watching = module.watching

        @contextmanager
        def along() -> Iterator[None]:
            with watching(), spent["reading along"].block(module.device):
                yield

        module.watching = along  # type: ignore[method-assign]

    Generation.setup = with_clock  # type: ignore[method-assign]
    try:
        yield
    finally:
        Generation.setup = setup  # type: ignore[method-assign]


def timed(call: Any, spent: Spent, module: Generation) -> Any:
    """The same call, timed unless it is made inside of one."""
    inside = False

    @wraps(call)  # whose signature tells what is counted
    def calling(*args: Any, **named: Any) -> Any:
        nonlocal inside
        if inside:
            return call(*args, **named)
        inside = True
        try:
            with spent.block(module.device):
                return call(*args, **named)
        finally:
            inside = False

    return calling


if __name__ == "__main__":
    raise SystemExit(main())
