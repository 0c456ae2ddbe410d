"""Features of images given as bytes: of a trained classifier, and of networks of colour images."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.interfaces import Classifier, from_pixels
from robustguide.metrics.extractor import Extractor, Identity, Pixels
from robustguide.metrics.resizing import resize


class ClassifierFeatures(Extractor):
    """Penultimate features of a classifier that is not the one under test, and its logits.

    The layers are "features", flattened, and "logits". Images are read at their own size, as the
    classifier reads clean ones; whatever it resizes and standardises belongs to it.

    Args:
        network: Maps images in [-1, 1] to logits; a `Classifier` is read at sigma = 0.
        name: What the features are called in the keys of results, such as "digits_features".
        layer: Name of the submodule whose input is the feature; null finds the `nn.Linear` that
            computes the logits.
        layers: Which of the two are wanted.

    Raises:
        ValueError: If the network has no submodule of that name.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        layer: str | None = None,
        layers: Sequence[str] = ("features",),
    ) -> None:
        if layer is not None and layer not in dict(network.named_modules()):
            names = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"{type(network).__name__} has no layer {layer!r}; name one of its submodules; "
                f"the outermost are {names}."
            )
        digest = digest_of(network.state_dict(), type(network).__qualname__, f"{layer}")
        super().__init__(Identity(name, digest, "none"))
        self.network = network
        self.name = name
        self.layer = layer
        self.layers = tuple(layers)
        self._head = layer  # found by the first call where no layer was named
        self.eval()

    def features(self, pixels: Pixels, y: Int[Tensor, " b"] | None) -> dict[str, Tensor]:
        """The wanted layers.

        Raises:
            ValueError: For images of another shape, or if no `nn.Linear` computes the logits and
                no layer was named.
        """
        shape = list(pixels.shape[1:])
        if isinstance(self.network, Classifier) and not self.network.reads(shape):
            expected = list(self.network.shape or ())
            raise ValueError(
                f"The network of {self.name!r} reads images of shape {expected}, got {shape}; "
                "give images of that shape, or another network."
            )
        reads_along = "features" in self.layers
        with _watching(self._candidates() if reads_along else {}) as seen:
            logits = self._logits(from_pixels(pixels))
        found = {"logits": logits}
        if reads_along:
            found["features"] = self._penultimate(seen, logits)
        return {layer: found[layer] for layer in self.layers}

    def _penultimate(self, seen: dict[str, tuple[Tensor, Tensor]], logits: Tensor) -> Tensor:
        for name, (features, answer) in seen.items():
            # the same memory: also where the network reshapes the answer on its way out
            if name == self._head or answer.data_ptr() == logits.data_ptr():
                self._head = name
                return features.flatten(1)
        raise ValueError(
            f"No nn.Linear of {type(self.network).__name__} computes its logits; name the layer "
            f"whose input is the feature (layer: ...)."
        )

    def _logits(self, images: Tensor) -> Tensor:
        reads_sigma = isinstance(self.network, Classifier)
        noise_level = [images.new_zeros(len(images))] if reads_sigma else []
        logits: Tensor = self.network(images, *noise_level)
        return logits

    def _candidates(self) -> dict[str, nn.Module]:
        if self._head is not None:
            return {self._head: self.network.get_submodule(self._head)}
        modules = self.network.named_modules()
        return {name: module for name, module in modules if isinstance(module, nn.Linear)}


@contextmanager
def _watching(layers: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collects input and output of layers while open; no hook outlives it, so copies work."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
            seen[name] = inputs[0], answer

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class ColourFeatures(Extractor):
    """Features of a network that reads standardised colour images of one size.

    Grey images are shown in all three channels. Everything is float32, the weights included.

    Args:
        net: Reads (b, 3, side, side).
        identity: Of the network; its resize brings images to that size.
        mean: Of each channel, in the units of bytes.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, identity: Identity, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(identity)
        self.net = net.float().requires_grad_(False)
        self.resize = resize(identity.resize)
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)
        self.eval()

    def features(self, pixels: Pixels, y: Int[Tensor, " b"] | None) -> dict[str, Tensor]:
        """Features by layer.

        Raises:
            ValueError: For images that are neither grey nor in colour.
        """
        if pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"{self.identity.network} reads images of 3 channels, or of 1 that it is shown "
                f"three times; got {pixels.shape[1]}. Decode latents, and leave out alpha."
            )
        images = self.resize(pixels).expand(-1, 3, -1, -1)
        return self.read((images - self.mean) / self.std, y)

    @abstractmethod
    def read(
        self, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"] | None
    ) -> dict[str, Tensor]:
        """Features of standardised images, by layer."""


def digest_of(tensors: Mapping[str, Tensor], *facts: str) -> str | None:
    """A hash of weights and of what else decides the features; null for weights without memory.

    Counters of batches, which some files hold and nothing reads, are left out.
    """
    if any(tensor.is_meta for tensor in tensors.values()):
        return None
    found = hashlib.sha256(" ".join(facts).encode())
    for name, tensor in sorted(tensors.items()):
        if not name.endswith("num_batches_tracked"):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
