"""Networks that are told a guidance scale."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.interfaces import Denoiser, Prediction, parameter_dtype
from robustguide.nets.adm_blocks import timestep_embedding, zeroed

STRETCH = 10.0  # the fastest sinusoid turns by a radian where the scale changes by a tenth


class ScaleInput(Denoiser):
    """Tells a denoiser the scale at which it shall guide itself, by a shift of some layers.

    The shifts start at zero, so that before training the denoiser is what it was, at any scale.
    `robustguide.modules.ScaleAwareModelGuidance` trains it. Scale-aware networks of Tang et al.
    (2025), section 3.3, which add the embedding to that of the noise level; here that is a choice
    of `layers`.

    Args:
        denoiser: The denoiser to tell.
        layers: Names of submodules whose outputs (b, channels, ...) are shifted, and their
            channels. The embedding of the noise level is a good one: `{"net.embed": 192}` of an
            MLP, `{"net.time_embed": 512}` of ADM. Not within blocks that are recomputed for the
            gradient (`use_checkpoint`), which happens later.
        scale: What it is told in sampling, 0 or more: 0 is the plain conditional model.
        width: Width of the embedding of the scale.

    Raises:
        ValueError: For a layer that the denoiser does not have, none, or a scale out of range.
    """

    def __init__(
        self, denoiser: Denoiser, layers: dict[str, int], scale: float = 0.0, width: int = 128
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.num_classes, self.shape = denoiser.num_classes, denoiser.shape
        self.has_null, self.learns_variance = denoiser.has_null, denoiser.learns_variance
        self.scale = checked(scale)
        self.width = width
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.shifts = nn.ModuleDict()
        self._told: Tensor | None = None
        names = [name for name, _ in denoiser.named_modules() if name]
        for name, channels in layers.items():
            if name not in names:
                raise ValueError(
                    f"The denoiser has no layer {name!r}; its layers are {', '.join(names[:40])}."
                )
            self.shifts[name.replace(".", "/")] = zeroed(nn.Linear(width, channels))
        if not layers:
            raise ValueError(
                "layers names none, so the denoiser would not be told the scale; its layers are "
                f"{', '.join(names[:40])}."
            )

    @contextmanager
    def at(self, scales: Float[Tensor, " n"]) -> Iterator[None]:
        """Within it the rows are told these scales: one for all, or the same n again and again."""
        before, self._told = self._told, scales
        try:
            yield
        finally:
            self._told = before

    def predict(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Prediction:
        """As the denoiser whose layers are shifted."""
        scales = self._scales(x)
        dtype = parameter_dtype(self.embed, x)
        embedding = self.embed(timestep_embedding(STRETCH * scales, self.width).to(dtype))
        with ExitStack() as hooks:
            for name, shift in self.shifts.items():
                layer = self.denoiser.get_submodule(name.replace("/", "."))
                hook = layer.register_forward_hook(_Adding(shift(embedding)))
                hooks.callback(hook.remove)
            return self.denoiser.predict(x, sigma, y)

    def _scales(self, x: Tensor) -> Float[Tensor, " b"]:
        if self._told is None:
            return x.new_full((1,), self.scale)
        copies, rest = divmod(len(x), len(self._told))
        if rest:
            raise ValueError(
                f"The denoiser was told {len(self._told)} scales, but denoises {len(x)} rows; "
                "give one scale, or one for every row."
            )
        return self._told if len(self._told) == 1 else self._told.repeat(copies)

    def snap(self, sigma: float) -> float:
        """As the denoiser that it tells."""
        return self.denoiser.snap(sigma)

    def loss_weight(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """As the denoiser that it tells."""
        return self.denoiser.loss_weight(sigma)

    def loss(self, error: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """As the denoiser that it tells."""
        return self.denoiser.loss(error, sigma)


class _Adding:
    """A forward hook that shifts the channels of an output (b, c, ...) by (b, c) or (1, c)."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        shift = self.shift.reshape(*self.shift.shape, *[1] * (output.ndim - 2))
        return output + shift.to(output)


def at_scale(denoiser: Denoiser, scale: float) -> Denoiser:
    """Sets what a trained network is told in sampling, such as one that was loaded.

    Raises:
        ValueError: For a denoiser that is not told scales, or a scale out of range.
    """
    if not isinstance(denoiser, ScaleInput):
        raise ValueError(
            f"at_scale sets the scale of a ScaleInput, got {type(denoiser).__name__}, which is "
            "not told one; train it as robustguide.denoisers.ScaleInput."
        )
    denoiser.scale = checked(scale)
    return denoiser


def checked(scale: float) -> float:
    """A scale in range.

    Raises:
        ValueError: For a number below 0 or none.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(
            f"scale must be a number of at least 0, got {scale}; 0 is the plain conditional "
            "model, and published numbers in which 1 is that are scale + 1."
        )
    return scale
