"""Features of clean images: what the last layer of a trained classifier reads."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustguide.interfaces import Classifier


class ClassifierFeatures(nn.Module):
    """Penultimate features of a classifier that is not the one under test.

    The network is put into eval mode and stays there, and it runs outside autocast, so that
    features depend on the image alone. Keep this in a callback, not on the module that is trained:
    there it would go into every checkpoint.

    Args:
        network: Maps images in [-1, 1] to logits; a `Classifier` is read at sigma = 0.
        name: What the features are called in the keys of results, such as "digits_features".
        layer: Name of the submodule whose input is the feature; null finds the `nn.Linear` that
            computes the logits.

    Raises:
        ValueError: If the network has no submodule of that name.
    """

    def __init__(self, network: nn.Module, name: str, layer: str | None = None) -> None:
        super().__init__()
        if layer is not None and layer not in dict(network.named_modules()):
            names = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"{type(network).__name__} has no layer {layer!r}; name one of its submodules; "
                f"the outermost are {names}."
            )
        self.network = network
        self.name = name
        self.layer = layer
        self._head = layer  # found by the first call where no layer was named
        self.eval()

    def train(self, mode: bool = True) -> "ClassifierFeatures":
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    @property
    def identity(self) -> str:
        """Name and a digest of the weights: equal exactly where features may be compared."""
        digest = hashlib.sha256(f"{type(self.network).__qualname__} {self.layer}".encode())
        for key, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"{self.name}@{digest.hexdigest()[:12]}"

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Features of clean images in [-1, 1], flattened.

        Raises:
            ValueError: If no `nn.Linear` computes the logits and no layer was named.
        """
        with torch.autocast(images.device.type, enabled=False):
            layers = self._candidates()
            with _watching(layers) as seen:
                logits = self._logits(images)
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
