"""Guidance as a displacement of the denoised image, in units of x_0.

By Tweedie's formula `denoised = x + sigma**2 * score`, so a score term s displaces the denoised
image by `sigma**2 * s`, and a reference term by a difference of denoised images. Displacements
add, each is computed from the *unguided* denoised image, so a sum does not depend on its order.

    denoised = clip(unguided + reference terms) + score terms
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.guidance.fit import check_names, check_shape, shown
from robustguide.interfaces import Classifier, Denoiser, Place, Prediction


class Branch(NamedTuple):
    """Another evaluation at the same x and sigma.

    Attributes:
        labels: Class indices (b,); ask with `null` or `y` themselves, not with copies, so that
            terms that want the same branch share it.
        denoiser: Null for the guided network itself.
    """

    labels: Int[Tensor, " b"]
    denoiser: Denoiser | None = None


class Evaluations:
    """Answers of denoisers at one (x, sigma), each computed once.

    Branches asked for together run as one batch of their network. The memo knows a branch by the
    identity of its label tensor: comparing values would wait for the device.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> None:
        self.denoiser = denoiser
        self.x, self.sigma = x, sigma
        self._memo: dict[tuple[int, int], tuple[Branch, Prediction]] = {}

    def batch(self, branches: Sequence[Branch]) -> None:
        """Evaluates what is not known yet, in one call for each network."""
        wanted: dict[int, dict[int, Branch]] = {}
        for branch in branches:
            network, labels = self._key(branch)
            if (network, labels) not in self._memo:
                wanted.setdefault(network, {})[labels] = branch
        for group in wanted.values():
            self._run(list(group.values()))

    def __call__(self, labels: Tensor, denoiser: Denoiser | None = None) -> Tensor:
        """Denoised image of a branch."""
        return self.prediction(Branch(labels, denoiser)).denoised

    def prediction(self, branch: Branch) -> Prediction:
        """All that the network says of a branch."""
        self.batch([branch])
        return self._memo[self._key(branch)][1]

    def _key(self, branch: Branch) -> tuple[int, int]:
        return id(branch.denoiser or self.denoiser), id(branch.labels)

    def _run(self, branches: list[Branch]) -> None:
        network, count = branches[0].denoiser or self.denoiser, len(branches)
        if count == 1:
            predictions = [network.predict(self.x, self.sigma, branches[0].labels)]
        else:
            together = network.predict(
                self.x.repeat(count, *[1] * (self.x.ndim - 1)),
                self.sigma.repeat(count),
                torch.cat([branch.labels for branch in branches]),
            )
            fractions: Sequence[Tensor | None] = [None] * count
            if together.fraction is not None:
                fractions = together.fraction.chunk(count)
            rows = zip(together.denoised.chunk(count), fractions, strict=True)
            predictions = [Prediction(denoised, fraction) for denoised, fraction in rows]
        for branch, prediction in zip(branches, predictions, strict=True):
            self._memo[self._key(branch)] = branch, prediction  # keeps labels alive, so ids stay


@dataclass(frozen=True)
class Step:
    """All that a term may look at.

    Attributes:
        x: State, `x_0 + sigma * eps`.
        sigma: Noise levels (b,).
        y: Class indices (b,).
        null: Null labels (b,), one tensor for all terms of a step.
        denoised: Of the unguided denoiser at x; clipped for score terms. With `needs_graph`
            it carries a graph on `x`.
        place: Index and count of steps, sigma as a host number, whether a corrector's evaluation.
        memory: The term's own, empty at the start of every sampler call. Update it only where
            `not place.corrector`.
        evaluate: `evaluate(labels, denoiser=None)`: denoised image of another branch.
    """

    x: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, " b"]
    y: Int[Tensor, " b"]
    null: Int[Tensor, " b"]
    denoised: Float[Tensor, "b c h w"]
    place: Place
    memory: dict[str, Any]
    evaluate: Evaluations

    def gradient(self, value: Tensor) -> Float[Tensor, "b c h w"]:
        """Gradient of a sum over rows with respect to `x`, through the denoiser's graph.

        Only for terms with `needs_graph`; the graph is kept for the other terms.
        """
        (gradient,) = torch.autograd.grad(value.sum(), self.x, retain_graph=True)
        return gradient


class Guidance(nn.Module):
    """One term.

    Attributes:
        moves_denoised: True for reference terms, which combine denoisers and always move the
            denoised image; False for score terms, which `ancestral` sends through the variance.
        needs_graph: True where `denoised` must come with a graph on `x`.
        num_classes: Number of classes that y must name one of, not the null label; null for a
            term that takes any label.
        class_names: Names of these classes, where they are known.
    """

    moves_denoised: bool = False
    needs_graph: bool = False
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()

    def classifiers(self) -> tuple[Classifier, ...]:
        """Those that it shows what the denoiser makes; they must read its shape."""
        return ()

    def branches(self, y: Tensor, null: Tensor, place: Place) -> tuple[Branch, ...]:
        """Evaluations that the term will certainly ask for, so that they run in one batch."""
        return ()

    @abstractmethod
    def forward(self, step: Step) -> Float[Tensor, "b c h w"]:
        """Displacement of the denoised image, in units of x_0."""


class Guided(Denoiser):
    """A denoiser moved by named terms is a denoiser. One is made for every sampler call.

    Args:
        denoiser: What is guided.
        terms: Terms by name; their displacements add.
        clip: Bound of the denoised image, applied after the reference terms and before the score
            terms; null does not clip.

    Raises:
        ValueError: For a name that a term cannot have, and for a term that needs a null label that
            the denoiser does not know, other classes than the denoiser's, or other images.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        terms: Mapping[str, Guidance] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.terms = named(terms or {})
        self.bound = clip
        self.num_classes = denoiser.num_classes
        self.shape = denoiser.shape
        self.has_null = denoiser.has_null
        self.learns_variance = denoiser.learns_variance
        self.memory: dict[str, dict[str, Any]] = {name: {} for name in self.terms}
        for name, term in terms_of(self.terms).items():
            self._check_classes(name, term)
            self._check_branches(name, term)
            for classifier in term.classifiers():
                check_shape(f"Term {name!r}", classifier, denoiser)
            check_names(f"Term {name!r}", term.class_names, denoiser)

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

    def _check_branches(self, name: str, term: Guidance) -> None:
        y, null = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
        for branch in term.branches(y, null, Place()):
            asked = branch.denoiser or self.denoiser
            if branch.labels is null and not asked.has_null:
                raise ValueError(
                    f"Term {name!r} asks for the null label, which the denoiser was not trained "
                    "with; train with label dropout, or give the term an unconditional reference."
                )
            if asked.shape != self.shape:
                raise ValueError(
                    f"Term {name!r}: the reference makes {shown(asked.shape)}, the denoiser "
                    f"{shown(self.shape)}; give a reference of the same images."
                )
            if branch.labels is not null and asked.num_classes not in (0, self.num_classes):
                raise ValueError(
                    f"Term {name!r}: the reference knows {asked.num_classes} classes, the "
                    f"denoiser {self.num_classes}; wrap the reference in Unconditional(..., "
                    f"num_classes={self.num_classes}), or give one of the same classes."
                )

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
        place = place or Place()
        null, terms = self.null(y), terms_of(self.terms)
        needs_graph = any(term.needs_graph for term in terms.values())
        with torch.set_grad_enabled(needs_graph or torch.is_grad_enabled()):
            state = x.detach().requires_grad_() if needs_graph else x
            evaluate = Evaluations(self.denoiser, state, sigma)
            own = Branch(y)
            asked = [b for term in terms.values() for b in term.branches(y, null, place)]
            evaluate.batch([own, *asked])
            prediction = evaluate.prediction(own)
            moved = {True: torch.zeros_like(x), False: torch.zeros_like(x)}
            for name, term in terms.items():
                kind = term.moves_denoised
                seen = prediction.denoised if kind else self.clip(prediction.denoised)
                if needs_graph and not term.needs_graph:
                    seen, at = seen.detach(), state.detach()
                else:
                    at = state
                step = Step(at, sigma, y, null, seen, place, self.memory[name], evaluate)
                moved[kind] = moved[kind] + term(step)
        if needs_graph:
            fraction = None if prediction.fraction is None else prediction.fraction.detach()
            prediction = Prediction(prediction.denoised.detach(), fraction)
            moved = {kind: displacement.detach() for kind, displacement in moved.items()}
        denoised = self.clip(prediction.denoised + moved[True])
        return prediction._replace(denoised=denoised), moved[False]

    def predict(
        self, x: Tensor, sigma: Tensor, y: Tensor, place: Place | None = None
    ) -> Prediction:
        """Prediction moved by all terms, for samplers that step with the denoised image."""
        prediction, shift = self.split(x, sigma, y, place)
        return prediction._replace(denoised=prediction.denoised + shift)


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
