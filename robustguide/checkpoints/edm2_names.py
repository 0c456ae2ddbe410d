"""Names of EDM2's published files, which say how a network was trained and averaged.

    edm2-img512-xs-uncond-2147483-0.135.pkl
         dataset size     kimg    EMA length

The length of an exponential moving average is its standard deviation relative to the length of
training, chosen after training. Karras et al. (2024), section 3.
"""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

FORM = re.compile(r"edm2-(img\d+)-([a-z]+)(-uncond)?-(\d{7})-(\d\.\d{3})\.pkl")


class EDM2Name(NamedTuple):
    """What the name of a file says.

    Attributes:
        dataset: "img512" (latents of images of 512 px) or "img64" (pixels).
        size: Of the network, "xs" to "xxl".
        is_unconditional: Whether the network knows no classes.
        kimg: Thousands of images seen in training, rounded down.
        ema: Length of the average, a share of the training.
    """

    dataset: str
    size: str
    is_unconditional: bool
    kimg: int
    ema: float

    @property
    def network(self) -> str:
        """What files of one training run have in common: all but `kimg` and `ema`."""
        suffix = "-uncond" if self.is_unconditional else ""
        return f"edm2-{self.dataset}-{self.size}{suffix}"

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.network}-{self.kimg:07d}-{self.ema:.3f}.pkl"


def edm2_name(file: str) -> EDM2Name:
    """Reads the name of a file, given alone, as a path or as an address.

    Raises:
        ValueError: For a name of another form.
    """
    name = PurePosixPath(file.replace("\\", "/")).name
    form = FORM.fullmatch(name)
    if form is None:
        raise ValueError(
            f"{name!r} is not a name that EDM2's files have, such as "
            "edm2-img512-xs-2147483-0.135.pkl: data set, size, -uncond for a network without "
            "classes, thousands of training images in 7 digits, EMA length in 3 decimals."
        )
    dataset, size, unconditional, kimg, ema = form.groups()
    return EDM2Name(dataset, size, unconditional is not None, int(kimg), float(ema))
