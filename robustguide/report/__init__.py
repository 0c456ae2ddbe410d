"""Figures of what was measured and sampled."""

from robustguide.report.figures import curves, reliability_diagrams, save
from robustguide.report.multiples import Panel, small_multiples
from robustguide.report.sheets import gradient_panel, grid_comparison, image_grid

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
