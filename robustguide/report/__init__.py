"""Figures of what was measured and sampled."""

from robustguide.report.figures import (
    curves,
    gradient_panel,
    grid_comparison,
    image_grid,
    reliability_diagrams,
    save,
)

__all__ = [
    "curves",
    "gradient_panel",
    "grid_comparison",
    "image_grid",
    "reliability_diagrams",
    "save",
]
