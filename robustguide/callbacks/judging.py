"""Who may judge generated images: no classifier that guided them."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from robustguide.checkpoints.digest import feed
from robustguide.interfaces import Classifier


def refuse_guides(judge: nn.Module, terms: Mapping[str, Any]) -> None:
    """Refuses a judge whose weights are those of a classifier in a term of guidance.

    Guidance raises what the guiding classifier thinks of an image, whether the image deserves it
    or not, so that its own judgement says nothing. Wrappers around either are looked into, and
    files do not count: weights do.

    Args:
        judge: Of finished images.
        terms: Terms of guidance by name.

    Raises:
        ValueError: For such a judge.
    """
    own = set(weights(judge))
    for name, term in terms.items():
        guides = {digest for guide in term.classifiers() for digest in weights(guide)}
        if own & guides:
            raise ValueError(
                f"The judge has the weights of the classifier that guides in term {name!r}; it "
                "would judge its own work. Give an independent classifier, trained on other "
                "images or with another seed, such as that of configs/fit/digits_judge.yaml."
            )


def weights(module: nn.Module) -> Iterator[str]:
    """Digests of the weights of all classifiers in a module, whatever their tensors are called."""
    for part in module.modules():
        parameters = list(part.parameters()) if isinstance(part, Classifier) else []
        found = []
        for parameter in parameters:
            digest = hashlib.sha256()
            feed(digest, "", parameter)
            found.append(digest.hexdigest())
        if found:
            yield hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()
