"""Guidance: displacements of the denoised image, which add."""

from robustguide.guidance.base import Branch, Evaluations, Guidance, Guided, Step, terms_of
from robustguide.guidance.classifier import ClassifierGuidance, score
from robustguide.guidance.combinators import Scaled, Within, WithinSteps
from robustguide.guidance.fit import check_observer
from robustguide.guidance.reference import ClassifierFree, Reference

__all__ = [
    "Branch",
    "ClassifierFree",
    "ClassifierGuidance",
    "Evaluations",
    "Guidance",
    "Guided",
    "Reference",
    "Scaled",
    "Step",
    "Within",
    "WithinSteps",
    "check_observer",
    "score",
    "terms_of",
]
