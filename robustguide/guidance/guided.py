"""A denoiser moved by terms.

Displacements add, each is computed from the *unguided* denoised image, so a sum does not depend on
its order.

    denoised = clip(unguided + reference terms) + score terms
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustguide.guidance.base import Guidance, Step
from robustguide.guidance.evaluations import Branch, Comparison, Evaluations
from robustguide.guidance.fit import check_names, check_shape, shown
from robustguide.interfaces import Denoiser, Place, Prediction, RandnLike


class Guided(Denoiser):
    """A denoiser moved by named terms is a denoiser. One is made for every sampler call.

    Args:
        denoiser: What is guided.
        terms: Terms by name; their displacements add.
        clip: Bound of the denoised image, applied after the reference terms and before the score
            terms; null does not clip.
        randn_like: Source of unit noise, from which each term gets a stream of its own.

    Raises:
        ValueError: For a name that a term cannot have, and for a term that needs a null label that
            the denoiser does not know, other classes than the denoiser's, or other images.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        terms: Mapping[str, Guidance] | None = None,
        clip: float | None = None,
        randn_like: RandnLike = torch.randn_like,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.terms = named(terms or {})
        self.bound = clip
        self.num_classes = denoiser.num_classes
        self.shape = denoiser.shape
        self.has_null = denoiser.has_null
        self.learns_variance = denoiser.learns_variance
        self.memory: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in self.terms}
        self.randn_like = randn_like
        self.noises: dict[str, RandnLike] = {}  # of the terms that have drawn from theirs
        self.unguided: Tensor | None = None  # what the denoiser alone said last, not clipped
        self.moves: tuple[Tensor, ...] = ()  # and the displacements that moved it then
        for name, term in terms_of(self.terms).items():
            self._check_classes(name, term)
            for comparison in compared(term):
                self._check_comparison(name, comparison)
            for classifier in term.classifiers():
                check_shape(f"Term {name!r}", classifier, denoiser)
            check_names(f"Term {name!r}", term.class_names, denoiser)
            term.check(denoiser)

    def _check_classes(self, name: str, term: Guidance) -> None:
        if term.num_classes in (None, self.num_classes):
            return
        repair = "give the term `labels`, the classifier's class of every class of the denoiser"
        if not self.num_classes:
            repair = f"wrap the denoiser in Unconditional(..., num_classes={term.num_classes})"
        raise ValueError(
            f"Term {name!r} is for labels of {term.num_classes} classes, those of the denoiser "
            f"are of {self.num_classes}; {repair}."
        )

    def _check_comparison(self, name: str, comparison: Comparison) -> None:
        asked = comparison.denoiser or self.denoiser
        if comparison.asks_null and not asked.has_null:
            raise ValueError(
                f"Term {name!r} asks for the null label, which the denoiser was not trained "
                "with; train with label dropout, or give the term an unconditional reference."
            )
        if asked.shape != self.shape:
            raise ValueError(
                f"Term {name!r}: the reference makes {shown(asked.shape)}, the denoiser "
                f"{shown(self.shape)}; give a reference of the same images."
            )
        if asked.num_classes not in (0, self.num_classes):
            raise ValueError(
                f"Term {name!r}: the reference knows {asked.num_classes} classes, the "
                f"denoiser {self.num_classes}; wrap the reference in Unconditional(..., "
                f"num_classes={self.num_classes}), or give one of the same classes."
            )
        if comparison.corruption is not None:
            comparison.corruption.check(asked)

    def snap(self, sigma: float) -> float:
        """As the guided denoiser."""
        return self.denoiser.snap(sigma)

    def clip(self, denoised: Tensor) -> Tensor:
        """Clamps to the bound, where there is one."""
        return denoised if self.bound is None else denoised.clamp(-self.bound, self.bound)

    def split(
        self, x: Tensor, sigma: Tensor, y: Tensor, place: Place | None = None
    ) -> tuple[Prediction, Tensor]:
        """Prediction moved by the reference terms and clipped; displacement of the score terms."""
        look = self._look(x, sigma, y, place, terms_of(self.terms))
        prediction = look.prediction()
        self.unguided = prediction.denoised.detach()
        reference, score = look.moved(moves_denoised=True), look.moved(moves_denoised=False)
        self.moves = reference.detach(), score.detach()
        return prediction._replace(denoised=self.clip(prediction.denoised + reference)), score

    def referred(
        self, x: Tensor, sigma: Tensor, y: Tensor, place: Place | None = None
    ) -> Prediction:
        """Prediction moved by the reference terms alone, and clipped."""
        terms = {n: term for n, term in terms_of(self.terms).items() if term.moves_denoised}
        look = self._look(x, sigma, y, place, terms)
        prediction = look.prediction()
        self.unguided = prediction.denoised.detach()
        reference = look.moved(moves_denoised=True)
        self.moves = (reference.detach(),)
        return prediction._replace(denoised=self.clip(prediction.denoised + reference))

    def displaced(
        self, x: Tensor, sigma: Tensor, y: Tensor, place: Place | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Displacement of the score terms; the denoiser runs only if one of them asks for it."""
        terms = {n: term for n, term in terms_of(self.terms).items() if not term.moves_denoised}
        return self._look(x, sigma, y, place, terms).moved(moves_denoised=False)

    def predict(
        self, x: Tensor, sigma: Tensor, y: Tensor, place: Place | None = None
    ) -> Prediction:
        """Prediction moved by all terms, for samplers that step with the denoised image."""
        prediction, shift = self.split(x, sigma, y, place)
        return prediction._replace(denoised=prediction.denoised + shift)

    def _look(
        self,
        x: Tensor,
        sigma: Tensor,
        y: Tensor,
        place: Place | None,
        terms: Mapping[str, Guidance],
    ) -> "_Look":
        place = place or Place()
        terms = {name: term for name, term in terms.items() if term.is_active(place)}
        needs_graph = any(term.wants_graph(place) for term in terms.values())
        state = x.detach().requires_grad_() if needs_graph else x
        evaluate = Evaluations(self.denoiser, state, sigma)
        null = self.null(y)
        steps = {}
        for name, term in terms.items():
            steps[name] = Step(
                x=state if term.wants_graph(place) else x,
                sigma=sigma,
                y=y,
                null=null,
                place=place,
                evaluate=evaluate,
                shown=self._shown(term, needs_graph and not term.wants_graph(place)),
                memory=self.memory[name],
                randn_like=partial(self._noise, name),
            )
        return _Look(evaluate, y, terms, steps, needs_graph)

    def _noise(self, name: str, like: Tensor) -> Tensor:
        if name not in self.noises:  # a generator an image, which few terms need
            spawn = getattr(self.randn_like, "spawn", None)
            self.noises[name] = spawn(name) if spawn else self.randn_like
        return self.noises[name](like)

    def _shown(self, term: Guidance, detaches: bool) -> Callable[[Tensor], Tensor]:
        clip = (lambda denoised: denoised) if term.moves_denoised else self.clip
        if detaches:
            return lambda denoised: clip(denoised.detach())
        return clip


@dataclass(frozen=True)
class _Look:
    """Terms at one state, and the evaluations that they share."""

    evaluate: Evaluations
    y: Tensor
    terms: Mapping[str, Guidance]
    steps: Mapping[str, Step]
    needs_graph: bool

    def prediction(self) -> Prediction:
        """Of the unguided denoiser; in one batch with the branches that terms surely ask for.

        With a graph, in two: a branch that nothing differentiates would only fill the memory.
        """
        own = Branch(self.y)
        if not self.needs_graph:
            self.evaluate.batch([own, *self._branches(False)])
            return self.evaluate.prediction(own)
        with torch.enable_grad():
            self.evaluate.batch([own, *self._branches(True)])
        with torch.no_grad():
            self.evaluate.batch(self._branches(False))
        denoised, fraction = self.evaluate.prediction(own)
        return Prediction(denoised.detach(), None if fraction is None else fraction.detach())

    def moved(self, moves_denoised: bool) -> Float[Tensor, "b c h w"]:
        """Sum of the displacements of the terms of a kind."""
        moved = torch.zeros_like(self.evaluate.x)
        for name, term in self.terms.items():
            if term.moves_denoised == moves_denoised:
                step = self.steps[name]
                differentiates = term.wants_graph(step.place)
                with torch.set_grad_enabled(
                    differentiates or (torch.is_grad_enabled() and not self.needs_graph)
                ):
                    moved = moved + term(step)
        return moved.detach() if self.needs_graph else moved

    def _branches(self, with_graph: bool) -> list[Branch]:
        asked: list[Branch] = []
        for name, term in self.terms.items():
            step = self.steps[name]
            if term.wants_graph(step.place) == with_graph:
                asked += term.branches(step.y, step.null, step.place)
        return asked


def compared(term: Guidance) -> list[Comparison]:
    """The comparisons that a term tells of, and those that show in its branches."""
    y, null = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    branches = term.branches(y, null, Place())
    return [
        *term.comparisons(),
        *(Comparison(b.denoiser, b.corruption, b.labels is null) for b in branches),
    ]


def named(terms: Mapping[str, Guidance]) -> nn.ModuleDict:
    """Terms as a module.

    Raises:
        ValueError: For a name that a submodule cannot have.
    """
    held = nn.ModuleDict()
    for name, term in terms.items():
        try:
            held[name] = term
        except KeyError as error:  # empty, with a dot, or an attribute of every ModuleDict
            raise ValueError(
                f"No guidance term can be called {name!r}; take a name without dots that is not a "
                "method of a module, such as 'classifier'."
            ) from error
    return held


def terms_of(held: nn.ModuleDict) -> dict[str, Guidance]:
    """The terms in a module made by `named`, whose type does not say what it holds."""
    return cast("dict[str, Guidance]", dict(held.items()))
