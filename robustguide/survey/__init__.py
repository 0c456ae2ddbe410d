"""The opinion survey: which of two images people prefer, asked on one page and scored."""

from robustguide.survey.answers import Answer, Answers, Gathered, gather, read_answers
from robustguide.survey.build import Wanted, build
from robustguide.survey.key import Key, Method, Question
from robustguide.survey.score import Settings, score
from robustguide.survey.sets import open_set

__all__ = [
    "Answer",
    "Answers",
    "Gathered",
    "Key",
    "Method",
    "Question",
    "Settings",
    "Wanted",
    "build",
    "gather",
    "open_set",
    "read_answers",
    "score",
]
