"""Guidance: displacements of the denoised image, which add."""

from robustguide.guidance.averaging import Averaged
from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.classifier import ClassifierGuidance, score
from robustguide.guidance.combinators import Channels, Combinator, Scaled, Within, WithinSteps
from robustguide.guidance.corruption import Dropout
from robustguide.guidance.evaluations import Branch, Corruption, Evaluations
from robustguide.guidance.fit import check_gradients, check_observer
from robustguide.guidance.gradient_free import Confused, FullSum, RandomReference
from robustguide.guidance.guided import Guided, terms_of
from robustguide.guidance.losses import ClassifierLoss, Loss, SquaredDistance
from robustguide.guidance.normalization import OfGradient, UnitNorm
from robustguide.guidance.objectives import Objective, RawLogit, Tempered
from robustguide.guidance.pairs import Matched, Pair, Switched
from robustguide.guidance.published import dit_classifier_free, edm2_guidance, ho_salimans
from robustguide.guidance.readings import (
    AnyReading,
    Reading,
    SwitchedReading,
    reading_of,
    readings,
)
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
from robustguide.guidance.schedules import EveryKth, SineSchedule
from robustguide.guidance.stabilizers import (
    EMA,
    Adam,
    InPlaceAdam,
    InPlaceEMA,
    Stabilized,
    Stabilizer,
)
from robustguide.guidance.universal import Descent, Universal
from robustguide.guidance.views import (
    AtDenoised,
    AtNormalizedState,
    AtState,
    ThroughDenoiser,
    View,
)

__all__ = [
    "EMA",
    "Adam",
    "AnyReading",
    "AtDenoised",
    "AtNormalizedState",
    "AtState",
    "Autoguidance",
    "Averaged",
    "Branch",
    "Channels",
    "Choice",
    "ClassifierFree",
    "ClassifierGuidance",
    "ClassifierLoss",
    "Combinator",
    "Confused",
    "Corruption",
    "Descent",
    "Dropout",
    "Evaluations",
    "EveryKth",
    "FullSum",
    "GradientFree",
    "Guidance",
    "Guided",
    "InPlaceAdam",
    "InPlaceEMA",
    "Loss",
    "Matched",
    "Null",
    "Objective",
    "OfGradient",
    "Own",
    "Pair",
    "RandomReference",
    "RawLogit",
    "Reading",
    "Reference",
    "ReferenceLabels",
    "Scaled",
    "SineSchedule",
    "SquaredDistance",
    "Stabilized",
    "Stabilizer",
    "Step",
    "Switched",
    "SwitchedReading",
    "Tempered",
    "ThroughDenoiser",
    "UnitNorm",
    "Universal",
    "View",
    "Within",
    "WithinSteps",
    "check_gradients",
    "check_observer",
    "dit_classifier_free",
    "edm2_guidance",
    "ho_salimans",
    "reading_of",
    "readings",
    "score",
    "terms_of",
]
