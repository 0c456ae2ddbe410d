"""What samples are compared with: statistics of real images that say where they come from."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustguide.files import whole
from robustguide.metrics.extractor import Identity
from robustguide.metrics.moments import Moments
from robustguide.metrics.tables import Held, Table

FORMAT = "robustguide.reference.1"
KEY = "reference"  # of the description, in the header


@dataclass(frozen=True)
class Provenance:
    """Of real images.

    Attributes:
        data: Data set.
        split: Of it; null where not told.
        recipe: How the images were cut and resized before the protocol saw them.
        count: Images behind the moments; null where a foreign file does not tell.
        digest: Of the bytes of all images in order, or of the foreign file; null where not known.
        file: The foreign file that was opened; null for our own.
    """

    data: str
    split: str | None = None
    recipe: str | None = None
    count: int | None = None
    digest: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Reference:
    """Statistics of real images by one protocol.

    Attributes:
        protocol: Its name.
        identity: Of the network that made the features.
        provenance: Of the images.
        moments: By layer.
        activations: Features of some of the images, by layer, for precision and recall.
    """

    protocol: str
    identity: Identity
    provenance: Provenance
    moments: Mapping[str, Moments]
    activations: Mapping[str, Table]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, under its final name only once it is whole."""
        told = {
            "format": FORMAT,
            "protocol": self.protocol,
            "identity": asdict(self.identity),
            "provenance": asdict(self.provenance),
            "counts": {layer: each.count for layer, each in self.moments.items()},
        }
        tensors: dict[str, Tensor] = {}
        for layer, each in self.moments.items():
            tensors |= {f"{layer}.mean": each.mean, f"{layer}.covariance": each.covariance}
        for layer, table in self.activations.items():
            tensors[f"{layer}.activations"] = table.block(0, table.rows)
        with whole(path) as part:
            header = {KEY: json.dumps(told)}  # one entry: the format keeps several in no order
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Reference":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: If the file holds something else, or is damaged.
        """
        expected = f"expected statistics that `robustguide stats` wrote ({FORMAT})"
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist (from {Path.cwd()}); {expected}.")
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {}).get(KEY, "{}"))
                if told.get("format") != FORMAT:
                    raise ValueError(f"{path} has format {told.get('format')!r}; {expected}.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error}); {expected}.") from error
        moments = {
            layer: Moments(count, tensors[f"{layer}.mean"], tensors[f"{layer}.covariance"])
            for layer, count in told["counts"].items()
        }
        ending = ".activations"
        kept = {k.removesuffix(ending): Held(t) for k, t in tensors.items() if k.endswith(ending)}
        identity, provenance = Identity(**told["identity"]), Provenance(**told["provenance"])
        return cls(told["protocol"], identity, provenance, moments, kept)

    def digest(self) -> str:
        """By which two scores are known to have one reference."""
        found = hashlib.sha256(f"{self.protocol} {self.identity}".encode())
        for layer in sorted(self.moments):
            for tensor in (self.moments[layer].mean, self.moments[layer].covariance):
                found.update(tensor.double().cpu().contiguous().numpy().tobytes())
        if self.provenance.file is not None:
            # features of its images are computed anew, to other last bits elsewhere
            found.update(str(self.provenance.digest).encode())
            return found.hexdigest()[:16]
        for layer, table in sorted(self.activations.items()):  # of others, recall is another
            found.update(f"{layer} {table.rows}".encode())
            for block in table.blocks():
                found.update(block.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]
