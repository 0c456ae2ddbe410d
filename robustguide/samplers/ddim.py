"""DDIM between two noise levels s > s', with any amount of fresh noise.

With r = (s'/s)**2 and direction (x - denoised) / s, a share eta of the posterior's noise is fresh:

    up = eta s' sqrt(1 - r)      down = s' sqrt(1 - eta**2 (1 - r))
    x' = denoised + down direction + up noise
"""

import math
from dataclasses import dataclass

from torch import Tensor

from robustguide.interfaces import Place
from robustguide.samplers.base import Run, Sampler, per_row


@dataclass(frozen=True)
class DDIM(Sampler):
    """Song et al. (2021), eq. 12; guidance moves the denoised image, as ADM's `condition_score`.

    Args:
        eta: 0 is deterministic, 1 has the posterior's variance.
        fresh_noise: Standard deviation of the fresh noise; 1 is exact, a little more makes up for
            a denoiser that removes too much.

    Raises:
        ValueError: For an eta outside [0, 1], or noise that is negative or not finite.
    """

    eta: float = 0.0
    fresh_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}; 0 is deterministic.")
        if not 0 <= self.fresh_noise < math.inf:
            raise ValueError(
                f"fresh_noise must be a finite number of at least 0, got {self.fresh_noise}; "
                "1 is unit noise, eta 0 draws none."
            )

    def step(self, run: Run, x: Tensor, place: Place) -> Tensor:
        """Towards the denoised image, with fresh noise."""
        sigma, sigma_next = run.levels(place)
        denoised = run.guided.predict(x, per_row(sigma, x), run.y, place).denoised
        run.observe(place, x, denoised)
        fresh = 1 - (sigma_next / sigma) ** 2
        up = self.eta * sigma_next * math.sqrt(fresh)
        down = sigma_next * math.sqrt(1 - self.eta**2 * fresh)
        mean = denoised + down / sigma * (x - denoised)
        return mean + self.fresh_noise * up * run.randn_like(x) if up > 0 else mean
