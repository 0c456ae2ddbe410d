"""Lengths of gradients and angles between them, row by row, whatever their size."""

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(values: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Euclidean norm of each row; squares of small values do not vanish."""
    largest = values.flatten(1).abs().amax(1)
    norm: Tensor = torch.linalg.vector_norm(_scaled(values), dim=1)
    return norm * largest


def cosines(
    values: Float[Tensor, "b ..."], direction: Float[Tensor, "b ..."] | None
) -> Float[Tensor, " b"]:
    """Cosine of the angle of each row with a direction; NaN without one, 0 of a row of zeros."""
    if direction is None:
        return torch.full_like(values.flatten(1)[:, 0], float("nan"))
    unit = [_unit(each.to(values.dtype)) for each in (values, direction)]
    cosine = (unit[0] * unit[1]).sum(1).clamp(-1, 1)
    return torch.where(unit[1].any(1), cosine, float("nan"))


def _unit(values: Tensor) -> Tensor:
    scaled = _scaled(values)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / norm.clamp_min(1)  # 1 or more, but for a row of zeros


def _scaled(values: Tensor) -> Tensor:
    """Rows whose largest value is 1, so that no square vanishes; zeros stay."""
    flat = values.flatten(1)
    return flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
