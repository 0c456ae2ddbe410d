"""Guidance: displacements of the denoised image, which add."""

from robustguide.guidance.base import (
    Branch,
    Corruption,
    Evaluations,
    Guidance,
    Guided,
    Step,
    terms_of,
)
from robustguide.guidance.classifier import ClassifierGuidance, score
from robustguide.guidance.combinators import Channels, Combinator, Scaled, Within, WithinSteps
from robustguide.guidance.fit import check_observer
from robustguide.guidance.objectives import Objective, RawLogit, Tempered
from robustguide.guidance.reference import (
    Autoguidance,
    Choice,
    ClassifierFree,
    GradientFree,
    Null,
    Own,
    Reference,
    ReferenceLabels,
)
from robustguide.guidance.views import (
    AtDenoised,
    AtNormalizedState,
    AtState,
    ThroughDenoiser,
    View,
)

__all__ = [
    "AtDenoised",
    "AtNormalizedState",
    "AtState",
    "Autoguidance",
    "Branch",
    "Channels",
    "Choice",
    "ClassifierFree",
    "ClassifierGuidance",
    "Combinator",
    "Corruption",
    "Evaluations",
    "GradientFree",
    "Guidance",
    "Guided",
    "Null",
    "Objective",
    "Own",
    "RawLogit",
    "Reference",
    "ReferenceLabels",
    "Scaled",
    "Step",
    "Tempered",
    "ThroughDenoiser",
    "View",
    "Within",
    "WithinSteps",
    "check_observer",
    "score",
    "terms_of",
]
