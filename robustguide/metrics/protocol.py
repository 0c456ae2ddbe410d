"""A protocol: how images become numbers. Its name is part of the name of each of them.

Two numbers called FID differ when the weights, the resize, the layer or the number of images do.
A protocol fixes the first three, `Score` carries the fourth, and what differs in any of them is
not compared.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from robustguide.metrics.extractor import Identity
from robustguide.metrics.jackknife import Jackknife
from robustguide.metrics.reference import Reference
from robustguide.metrics.tables import Table


@dataclass(frozen=True)
class Sampled:
    """Features of the images that are judged, in the order of their numbers.

    Attributes:
        layers: Features by layer.
        groups: Group (n,) of each image, 0 to g - 1, for the jackknife: images of one seed are in
            one group, whatever made them.
        y: Labels (n,); null where images have none.
    """

    layers: Mapping[str, Table]
    groups: Int[Tensor, " n"]
    y: Int[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Measured:
    """A number, and what it would be without each group of images.

    Attributes:
        value: The number; NaN is never one.
        replicates: The number without group 0, 1, ...; empty where that is not known.
        facts: What else defines it, as plain data: k, blocks, degree.
    """

    value: float
    replicates: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def interval(self) -> tuple[float, float] | None:
        """95% limits at this n; null where nothing is known of the noise."""
        known = len(self.replicates) > 1
        return Jackknife(self.value, self.replicates).interval() if known else None


class Measure(ABC):
    """Some numbers of one layer.

    Attributes:
        titles: How each number is shown, by its name in keys: {"fid": "FID"}.
        lower_is_better: By the same names.
        layer: Whose features it reads.
        needs: What of a reference: "nothing", "moments" or "activations".
        is_unbiased: Whether the numbers mean the same at each n, apart from noise. A distance,
            precision, recall and the Inception score do not.
    """

    titles: Mapping[str, str]
    lower_is_better: Mapping[str, bool]
    layer: str
    needs: str = "moments"
    is_unbiased: bool = False

    @abstractmethod
    def measure(self, sampled: Sampled, reference: Reference | None) -> dict[str, Measured]:
        """The numbers by name.

        Raises:
            ValueError: For too few images, or features that are not finite.
        """


@dataclass(frozen=True)
class Protocol:
    """See the module.

    Attributes:
        name: Such as "adm".
        network: Such as "inception-2015-12-05"; `load_extractor` of checkpoints builds it.
        resize: Name of the resize, in `robustguide.metrics.resizing.RESIZES`.
        measures: What is computed.
        source: Publication and code that define it.
        weights: Name of the card of its weights, or a file; null where a path must be given.
        images: Number of images that its publications compare.
        activations: Number of real images whose features `stats` keeps for precision and recall.
        head: Layer of a classifier whose input the features are; null finds it.
    """

    name: str
    network: str
    resize: str
    measures: tuple[Measure, ...]
    source: str
    weights: str | None = None
    images: int = 50_000
    activations: int = 10_000
    head: str | None = None

    def key(self, name: str) -> str:
        """Of a number, in results and on TensorBoard: `fid/adm`."""
        return f"{name}/{self.name}"

    def shown(self, name: str, n: int) -> str:
        """Of a number, to a reader: `FID-2k@adm`."""
        title = next(m.titles[name] for m in self.measures if name in m.titles)
        return f"{title}-{count(n)}@{self.name}"

    def require(self, reference: Reference, identity: Identity) -> None:
        """Refuses a reference that was made in another way.

        Raises:
            ValueError: Names both sides.
        """
        if reference.protocol != self.name:
            raise ValueError(
                f"The samples are measured by protocol {self.name!r}, the reference "
                f"{reference.provenance.data!r} was made by {reference.protocol!r}; write one "
                f"with `robustguide stats DATA --protocol {self.name}`, or score by "
                f"--protocol {reference.protocol}."
            )
        if not identity.agrees(reference.identity):
            raise ValueError(
                f"The features come from {identity}, those of the reference "
                f"{reference.provenance.data!r} from {reference.identity}; only equal ones are "
                f"compared. Write the reference again with `robustguide stats`."
            )


def count(n: int) -> str:
    """Such as 50k, 1.5k or 999; exact, so that two numbers of one name are comparable."""
    if n < 1000:
        return str(n)
    return f"{n // 1000}k" if n % 1000 == 0 else f"{n / 1000}k"
