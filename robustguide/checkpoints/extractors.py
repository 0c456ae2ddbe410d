"""The network of a protocol, from a file of weights that is there, as an extractor of features.

Nothing is downloaded here. Weights that are named by their card must be the published ones; those
that are given by their path may be others, and the identity of the extractor says so: the digest
of its tensors is part of it, and where a file is known not to be the published one, so is that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from robustguide.cards import Card, card_of_file, cards, needed
from robustguide.checkpoints.description import is_described
from robustguide.checkpoints.load import load_classifier
from robustguide.checkpoints.metadata import read_metadata, sha256_of
from robustguide.checkpoints.off_the_shelf import clip_classifier, tensors_of
from robustguide.classifiers.clip import TEMPLATES, Architecture, ZeroShot, imagenet_names
from robustguide.classifiers.off_the_shelf import IMAGENET_MEAN, IMAGENET_STD
from robustguide.metrics.extractor import Extractor, Identity
from robustguide.metrics.features import ClassifierFeatures, ColourFeatures, digest_of
from robustguide.metrics.protocol import Protocol
from robustguide.nets import FIDInception

BYTE = 255


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes:
        file: Which is there.
        card: Of the published file; null for a network of the user's own.
        is_published: Whether it is that file, or converted from it; null where no hash tells.
    """

    file: Path
    card: Card | None = None
    is_published: bool | None = None


class InceptionFeatures(ColourFeatures):
    """Layers "pool3", "spatial" and "logits" of TensorFlow's Inception.

    Args:
        net: Filled.
        identity: See `ColourFeatures`.
        layers: Which of them are wanted.
    """

    net: FIDInception

    def __init__(self, net: nn.Module, identity: Identity, layers: Sequence[str]) -> None:
        super().__init__(net, identity, mean=[128] * 3, std=[128] * 3)
        self.layers = tuple(layers)

    def read(
        self, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"] | None
    ) -> dict[str, Tensor]:
        """The wanted layers."""
        found = self.net.readout(images)._asdict()
        return {layer: found[layer] for layer in self.layers}


class ClassToken(ColourFeatures):
    """Layer "cls": the normalised class token of a DINOv2."""

    def read(
        self, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"] | None
    ) -> dict[str, Tensor]:
        """The token."""
        return {"cls": self.net(images)}


class TextCosine(ColourFeatures):
    """Layer "cosine" (b, 1): how like an image and the text of its label are to a CLIP."""

    net: ZeroShot

    def read(
        self, images: Float[Tensor, "b c h w"], y: Int[Tensor, " b"] | None
    ) -> dict[str, Tensor]:
        """The raw cosine, in [-1, 1].

        Raises:
            ValueError: Without labels, or for one that has no text.
        """
        count = len(self.net.text_features)
        if y is None or bool((y < 0).any() | (y >= count).any()):
            given = "none" if y is None else f"labels from {int(y.min())} to {int(y.max())}"
            raise ValueError(
                f"{self.identity.network} compares images with the texts of their labels, 0 to "
                f"{count - 1}; got {given}. Give samples with labels, and a name for each class."
            )
        features = F.normalize(self.net.visual(images), dim=-1)
        texts = self.net.text_features[y.to(features.device)]
        return {"cosine": (features * texts).sum(-1, keepdim=True)}


def load_extractor(
    protocol: Protocol,
    weights: str | None = None,
    class_names: Sequence[str] | None = None,
    architecture: Architecture | None = None,
    head: str | None = None,
) -> Extractor:
    """The extractor of a protocol, on the CPU.

    Args:
        protocol: Whose layers it gives: those that its measures read.
        weights: File of weights, or the card of a published one; null is the protocol's own.
        class_names: What a CLIP compares images with, one for each label, in "a photo of a {}.";
            `robustguide.classifiers.clip.imagenet_names` tells those of ImageNet.
        architecture: Of a CLIP in a file that has no card; see `ZeroShot`.
        head: Layer of a classifier whose input the features are; null is the protocol's.

    Raises:
        FileNotFoundError: The file is not there; tells where it is looked for and how to get it.
        ValueError: No such file is known, or it is not what the protocol reads.
    """
    found = located(protocol, weights)
    if protocol.network.startswith("clip"):
        return _clip(protocol, _whole(found), class_names, architecture)
    build = {"inception-2015-12-05": _inception, "dinov2-vitl14": _dinov2}.get(protocol.network)
    if build is not None:
        return build(protocol, found)
    name = None if found.card is None else found.card.name
    classifier = load_classifier(str(found.file), name)
    return ClassifierFeatures(
        classifier, protocol.network, head or protocol.head, _layers_of(protocol)
    )


def located(protocol: Protocol, weights: str | None = None) -> Weights:
    """The file that a protocol reads.

    Args:
        protocol: With a default, or without.
        weights: A file, or the name of a card; null is the default.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: There is no default, or the card's file is not the published one.
    """
    named = weights or protocol.weights
    if named is None:
        raise ValueError(
            f"Protocol {protocol.name!r} reads a network of yours; give its file as `weights`, "
            "such as one that a training run exported."
        )
    if named in cards():
        card = cards()[named]
        file = needed(card)
        is_published = _is_published(card, file)
        if is_published is False:
            raise ValueError(
                f"{file} is not the file that card {card.name!r} describes: its SHA-256 is "
                f"{_source_hash(file) or 'not known'}, the published one {card.sha256}. Remove it "
                f"and run `robustguide fetch {card.name}`; to use other weights, give their path."
            )
        return Weights(file, card, is_published)
    file, own = Path(named).expanduser(), cards().get(protocol.weights or "")
    if not file.is_file():
        get = f"`robustguide fetch {own.name}` gets {own.file}" if own else protocol.source
        raise FileNotFoundError(
            f"The weights {file} of protocol {protocol.name!r} do not exist (from {Path.cwd()}); "
            f"give a file that is there. {get[:1].upper() + get[1:]}."
        )
    return Weights(file, own, None if own is None else _is_published(own, file))


def _is_published(card: Card, file: Path) -> bool | None:
    return _source_hash(file).startswith(card.sha256) if card.sha256 else None


def _source_hash(file: Path) -> str:
    """Of the published file; `convert` notes it in what it writes."""
    if is_described(file):
        return str(read_metadata(file).extra.get("file_sha256", ""))
    return sha256_of(file)


def _layers_of(protocol: Protocol) -> list[str]:
    """Those that some measure reads, in their order."""
    return list(dict.fromkeys(measure.layer for measure in protocol.measures))


def _inception(protocol: Protocol, found: Weights) -> Extractor:
    net = _published_net(protocol, found)
    identity = _identity(protocol, found, digest_of(net.state_dict()))
    return InceptionFeatures(net, identity, _layers_of(protocol))


def _dinov2(protocol: Protocol, found: Weights) -> Extractor:
    net = _published_net(protocol, found)
    tensors = net.state_dict()
    # Positions of patches were interpolated on reading, and their last bits are the machine's.
    tensors["pos_embed"] = tensors["pos_embed"][:, :1]
    identity = _identity(protocol, found, digest_of(tensors))
    mean, std = ([BYTE * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ClassToken(net, identity, mean, std)


def _published_net(protocol: Protocol, found: Weights) -> nn.Module:
    """The bare network of a card, whose file is another's perhaps.

    Raises:
        ValueError: The file holds another network.
    """
    card = found.card
    if card is None:
        raise ValueError(f"Protocol {protocol.name!r} names no card of its weights.")
    if is_described(found.file):
        said = read_metadata(found.file).extra.get("card")
        if said != card.name:
            raise ValueError(
                f"{found.file} holds {said or 'a network without a card'}, protocol "
                f"{protocol.name!r} reads {card.name}; give {card.file}, or what `robustguide "
                f"convert` makes of it."
            )
    net: nn.Module = load_classifier(str(found.file), card.name).get_submodule("net")
    return net


def _identity(protocol: Protocol, found: Weights, digest: str | None) -> Identity:
    """Foreign statistics tell no digest; the network's name keeps other weights from them."""
    other = " (other weights)" if found.is_published is False else ""
    return Identity(protocol.network + other, digest, protocol.resize)


def _whole(found: Weights) -> Weights:
    """The published file, where it lies beside its conversion, which knows fewer texts."""
    card = found.card
    if card is None or found.file.name != card.converted:
        return found
    published = found.file.with_name(card.file)
    return replace(found, file=published) if published.is_file() else found


def _clip(
    protocol: Protocol,
    found: Weights,
    class_names: Sequence[str] | None,
    architecture: Architecture | None,
) -> Extractor:
    """With both networks of a published file, or with the texts that a converted one holds.

    What belongs to the digest are all tensors that were read. So a converted file, which has no
    text network, is not the published one, and cosines of the two are not compared.
    """
    file = str(found.file)
    shelf: Any
    if is_described(found.file):
        shelf = load_classifier(file)
        architecture = _architecture(shelf.metadata.specification, file)
        _check_names(class_names, shelf.metadata.class_names, found)
        tensors, texts = shelf.net.state_dict(), []
    else:
        if not class_names:
            raise ValueError(
                f"Protocol {protocol.name!r} compares images with texts; give `class_names`, one "
                "for each label in their order."
            )
        if architecture is None:
            of = card_of_file(found.file) or found.card
            architecture = _architecture(of.specification if of else {}, file)
        shelf = clip_classifier(architecture, class_names, TEMPLATES, file)
        tensors, texts = tensors_of(file), [*class_names, *TEMPLATES]
    model = architecture if isinstance(architecture, str) else "of an architecture of its own"
    digest = digest_of(tensors, f"{architecture}", *texts)
    identity = Identity(f"clip {model}", digest, f"pil-bicubic-{shelf.size}")
    mean, std = (BYTE * values.flatten() for values in (shelf.mean, shelf.std))
    return TextCosine(shelf.net, identity, mean.tolist(), std.tolist())


def _architecture(specification: dict[str, Any], file: str) -> Architecture:
    """Which CLIP a specification builds.

    Raises:
        ValueError: It builds something else.
    """
    net = specification.get("init_args", {}).get("net", {})
    found = net.get("init_args", {}).get("architecture")
    if found is None:
        raise ValueError(
            f"{file} is not known to hold a CLIP; give the file of one, in the names of "
            "open_clip, and its `architecture`, such as 'ViT-B-32'."
        )
    architecture: Architecture = found
    return architecture


def _check_names(wanted: Sequence[str] | None, own: Sequence[str], found: Weights) -> None:
    """Refuses names other than those that `robustguide convert` made texts of.

    Raises:
        ValueError: Others are wanted. ImageNet's classes have two lists of names.
    """
    if wanted is not None and list(wanted) not in (list(own), imagenet_names()[: len(own)]):
        published = found.card.file if found.card else "the published file"
        raise ValueError(
            f"{found.file} holds the texts of {len(own)} classes, {', '.join(own[:2])} and so on, "
            f"and no network for others; for these {len(wanted)} names give {published} itself."
        )
