"""Evaluations of denoisers that terms share at one state."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from robustguide.interfaces import Denoiser, Prediction


class Corruption(nn.Module):
    """Makes a network worse for a while, so that it can serve as its own weaker reference."""

    @abstractmethod
    def forward(self, denoiser: Denoiser) -> AbstractContextManager[object]:
        """A context in which the denoiser predicts worse; afterwards it is what it was."""

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a network that it cannot make worse.

        Raises:
            ValueError: See the corruptions.
        """


class Branch(NamedTuple):
    """Another evaluation at the same x and sigma.

    Attributes:
        labels: Class indices (b,); ask with `null` or `y` themselves, not with copies, so that
            terms that want the same branch share it.
        denoiser: Null for the guided network itself.
        corruption: What is done to the network meanwhile.
    """

    labels: Int[Tensor, " b"]
    denoiser: Denoiser | None = None
    corruption: Corruption | None = None


class Comparison(NamedTuple):
    """A network that a term compares with the guided one.

    Attributes:
        denoiser: Null for the guided network itself.
        corruption: What is done to it meanwhile.
        asks_null: Whether it may be asked for the null label.
    """

    denoiser: Denoiser | None = None
    corruption: Corruption | None = None
    asks_null: bool = False


class Evaluations:
    """Answers of denoisers at one (x, sigma), each computed once.

    Branches asked for together run as one batch of their network. The memo knows a branch by the
    identity of its label tensor: comparing values would wait for the device.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> None:
        self.denoiser = denoiser
        self.x, self.sigma = x, sigma
        self._memo: dict[tuple[int, int, int], tuple[Branch, Prediction]] = {}

    def batch(self, branches: Sequence[Branch]) -> None:
        """Evaluates what is not known yet, in one call for each network."""
        wanted: dict[tuple[int, int], dict[int, Branch]] = {}
        for branch in branches:
            key = self._key(branch)
            if key not in self._memo:
                wanted.setdefault(key[:2], {})[key[2]] = branch
        for group in wanted.values():
            self._run(list(group.values()))

    def __call__(
        self,
        labels: Tensor,
        denoiser: Denoiser | None = None,
        corruption: Corruption | None = None,
        rows: Int[Tensor, " r"] | None = None,
    ) -> Tensor:
        """Denoised image of a branch; with `rows` only of those, whose labels (r,) are given."""
        if rows is not None:
            network = denoiser or self.denoiser
            with corruption(network) if corruption else nullcontext():
                return network.predict(self.x[rows], self.sigma[rows], labels).denoised
        return self.prediction(Branch(labels, denoiser, corruption)).denoised

    def prediction(self, branch: Branch) -> Prediction:
        """All that the network says of a branch."""
        self.batch([branch])
        return self._memo[self._key(branch)][1]

    def _key(self, branch: Branch) -> tuple[int, int, int]:
        return id(branch.denoiser or self.denoiser), id(branch.corruption), id(branch.labels)

    def _run(self, branches: list[Branch]) -> None:
        network, count = branches[0].denoiser or self.denoiser, len(branches)
        corruption = branches[0].corruption
        with corruption(network) if corruption else nullcontext():
            if count == 1:
                predictions = [network.predict(self.x, self.sigma, branches[0].labels)]
            else:
                predictions = self._together(network, branches)
        for branch, prediction in zip(branches, predictions, strict=True):
            self._memo[self._key(branch)] = branch, prediction  # keeps labels alive, so ids stay

    def _together(self, network: Denoiser, branches: list[Branch]) -> list[Prediction]:
        count = len(branches)
        together = network.predict(
            self.x.repeat(count, *[1] * (self.x.ndim - 1)),
            self.sigma.repeat(count),
            torch.cat([branch.labels for branch in branches]),
        )
        fractions: Sequence[Tensor | None] = [None] * count
        if together.fraction is not None:
            fractions = together.fraction.chunk(count)
        rows = zip(together.denoised.chunk(count), fractions, strict=True)
        return [Prediction(denoised, fraction) for denoised, fraction in rows]
