"""Guidance as a displacement of the denoised image, in units of x_0.

By Tweedie's formula `denoised = x + sigma**2 * score`, so a score term s displaces the denoised
image by `sigma**2 * s`, and a reference term by a difference of denoised images. Displacements
add, each is computed from the *unguided* denoised image, so a sum does not depend on its order.

    denoised = clip(unguided + reference terms) + score terms
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustguide.guidance.fit import check_names, check_shape, shown
from robustguide.interfaces import Classifier, Denoiser, Place, Prediction, RandnLike


class Corruption(nn.Module):
    """Makes a network worse for a while, so that it can serve as its own weaker reference."""

    @abstractmethod
    def forward(self, denoiser: Denoiser) -> AbstractContextManager[object]:
        """A context in which the denoiser predicts worse; afterwards it is what it was."""

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a network that it cannot make worse.

        Raises:
            ValueError: See the corruptions.
        """


class Branch(NamedTuple):
    """Another evaluation at the same x and sigma.

    Attributes:
        labels: Class indices (b,); ask with `null` or `y` themselves, not with copies, so that
            terms that want the same branch share it.
        denoiser: Null for the guided network itself.
        corruption: What is done to the network meanwhile.
    """

    labels: Int[Tensor, " b"]
    denoiser: Denoiser | None = None
    corruption: Corruption | None = None


class Comparison(NamedTuple):
    """A network that a term compares with the guided one.

    Attributes:
        denoiser: Null for the guided network itself.
        corruption: What is done to it meanwhile.
        asks_null: Whether it may be asked for the null label.
    """

    denoiser: Denoiser | None = None
    corruption: Corruption | None = None
    asks_null: bool = False


class Evaluations:
    """Answers of denoisers at one (x, sigma), each computed once.

    Branches asked for together run as one batch of their network. The memo knows a branch by the
    identity of its label tensor: comparing values would wait for the device.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, sigma: Tensor) -> None:
        self.denoiser = denoiser
        self.x, self.sigma = x, sigma
        self._memo: dict[tuple[int, int, int], tuple[Branch, Prediction]] = {}

    def batch(self, branches: Sequence[Branch]) -> None:
        """Evaluates what is not known yet, in one call for each network."""
        wanted: dict[tuple[int, int], dict[int, Branch]] = {}
        for branch in branches:
            key = self._key(branch)
            if key not in self._memo:
                wanted.setdefault(key[:2], {})[key[2]] = branch
        for group in wanted.values():
            self._run(list(group.values()))

    def __call__(
        self,
        labels: Tensor,
        denoiser: Denoiser | None = None,
        corruption: Corruption | None = None,
        rows: Int[Tensor, " r"] | None = None,
    ) -> Tensor:
        """Denoised image of a branch; with `rows` only of those, whose labels (r,) are given."""
        if rows is not None:
            network = denoiser or self.denoiser
            with corruption(network) if corruption else nullcontext():
                return network.predict(self.x[rows], self.sigma[rows], labels).denoised
        return self.prediction(Branch(labels, denoiser, corruption)).denoised

    def prediction(self, branch: Branch) -> Prediction:
        """All that the network says of a branch."""
        self.batch([branch])
        return self._memo[self._key(branch)][1]

    def _key(self, branch: Branch) -> tuple[int, int, int]:
        return id(branch.denoiser or self.denoiser), id(branch.corruption), id(branch.labels)

    def _run(self, branches: list[Branch]) -> None:
        network, count = branches[0].denoiser or self.denoiser, len(branches)
        corruption = branches[0].corruption
        with corruption(network) if corruption else nullcontext():
            if count == 1:
                predictions = [network.predict(self.x, self.sigma, branches[0].labels)]
            else:
                predictions = self._together(network, branches)
        for branch, prediction in zip(branches, predictions, strict=True):
            self._memo[self._key(branch)] = branch, prediction  # keeps labels alive, so ids stay

    def _together(self, network: Denoiser, branches: list[Branch]) -> list[Prediction]:
        count = len(branches)
        together = network.predict(
            self.x.repeat(count, *[1] * (self.x.ndim - 1)),
            self.sigma.repeat(count),
            torch.cat([branch.labels for branch in branches]),
        )
        fractions: Sequence[Tensor | None] = [None] * count
        if together.fraction is not None:
            fractions = together.fraction.chunk(count)
        rows = zip(together.denoised.chunk(count), fractions, strict=True)
        return [Prediction(denoised, fraction) for denoised, fraction in rows]


@dataclass(frozen=True)
class Step:
    """All that a term may look at.

    Attributes:
        x: State, `x_0 + sigma * eps`.
        sigma: Noise levels (b,).
        y: Class indices (b,).
        null: Null labels (b,), one tensor for all terms of a step.
        place: Index and count of steps, sigma as a host number, whether a corrector's evaluation.
        evaluate: `evaluate(labels, denoiser=None)`: denoised image of another branch.
        shown: What the term is shown of a denoised image: clipped for score terms.
        memory: The term's own, empty at the start of every sampler call; see `own`.
        randn_like: Unit noise like a tensor, of the term's own, that belongs to the image.
    """

    x: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, " b"]
    y: Int[Tensor, " b"]
    null: Int[Tensor, " b"]
    place: Place
    evaluate: Evaluations
    shown: Callable[[Tensor], Tensor]
    memory: dict[int, dict[str, Any]]
    randn_like: RandnLike = torch.randn_like

    @property
    def denoised(self) -> Float[Tensor, "b c h w"]:
        """Of the unguided denoiser at x; clipped for score terms, evaluated when asked for.

        With `needs_graph` it carries a graph on `x`.
        """
        return self.shown(self.evaluate(self.y))

    def own(self, part: nn.Module) -> dict[str, Any]:
        """What a part of the term remembers, empty at the start of every sampler call.

        Change it only where `not place.corrector`.
        """
        return self.memory.setdefault(id(part), {})

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

    def differentiated(self) -> tuple[Classifier, ...]:
        """Those whose gradient it takes."""
        return ()

    def comparisons(self) -> tuple[Comparison, ...]:
        """Networks that it compares with the guided one."""
        return ()

    def check(self, denoiser: Denoiser) -> None:
        """Refuses a denoiser for a reason of the term's own.

        Raises:
            ValueError: See the terms.
        """

    def is_active(self, place: Place) -> bool:
        """Whether any row can be moved here, as far as the host knows; else nothing is asked."""
        return True

    def wants_graph(self, place: Place) -> bool:
        """Whether it needs the graph here; a term made of others may need it at some levels."""
        return self.needs_graph

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
        spawn = getattr(randn_like, "spawn", None)
        self.noises: dict[str, RandnLike] = {
            name: spawn(name) if spawn else randn_like for name in self.terms
        }
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
        moved = prediction.denoised + look.moved(moves_denoised=True)
        return prediction._replace(denoised=self.clip(moved)), look.moved(moves_denoised=False)

    def referred(
        self, x: Tensor, sigma: Tensor, y: Tensor, place: Place | None = None
    ) -> Prediction:
        """Prediction moved by the reference terms alone, and clipped."""
        terms = {n: term for n, term in terms_of(self.terms).items() if term.moves_denoised}
        look = self._look(x, sigma, y, place, terms)
        prediction = look.prediction()
        moved = prediction.denoised + look.moved(moves_denoised=True)
        return prediction._replace(denoised=self.clip(moved))

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
                randn_like=self.noises[name],
            )
        return _Look(evaluate, y, terms, steps, needs_graph)

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
