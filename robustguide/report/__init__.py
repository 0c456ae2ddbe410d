"""Figures of what was measured and sampled."""

from robustguide.report.figures import (
    curves,
    gradient_panel,
    grid_comparison,
    image_grid,
    reliability_diagrams,
    save,
)
from robustguide.report.multiples import Panel, small_multiples

__all__ = [
    "Panel",
    "curves",
    "gradient_panel",
    "grid_comparison",
    "image_grid",
    "reliability_diagrams",
    "save",
    "small_multiples",
]
