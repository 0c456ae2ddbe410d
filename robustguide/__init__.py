"""Classifier guidance of diffusion models: train, evaluate, sample.

Names are imported when they are asked for, so that `robustguide --help` starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustguide.checkpoints import load_classifier, load_denoiser
    from robustguide.samplers import sample

__all__ = ["load_classifier", "load_denoiser", "sample"]
__version__ = "0.1.0"

_HOMES = {
    "load_classifier": "robustguide.checkpoints",
    "load_denoiser": "robustguide.checkpoints",
    "sample": "robustguide.samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robustguide' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
