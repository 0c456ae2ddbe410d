"""What a configuration costs before it is run: FLOPs and hours of sampling and of training.

The sampler, or a step of training, is run once for one image on tensors that have shapes and no
memory, so that no weights, no data and no GPU are needed. The evaluations are those that it makes.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from robustguide.attacks import PGD, Attack
from robustguide.cards import card_of_file, cards
from robustguide.complaints import innermost
from robustguide.guidance import terms_of
from robustguide.modules import (
    Denoising,
    FreeClassification,
    Generation,
    RobustClassification,
)
from robustguide.modules.optimization import thaw
from robustguide.plans.flops import Asked, Counter, Ledger, keeping
from robustguide.samplers import Sampler
from robustguide.specification import call

META = torch.device("meta")
# Dense, FLOPs a second: NVIDIA's data sheets of the A100 (SXM, 40 and 80 GB) and of the H100 SXM,
# whose larger numbers "with sparsity" are twice these. fp32 is that of the cores without tensors.
PEAKS = {
    "a100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "h100": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
}
IMAGES = 50_000
WRAPPED = ("net", "classifier", "denoiser", "autoencoder")
ROWS = 2  # of a counted step of training: batch statistics need more than one


class DependsOnImagesError(ValueError):
    """What is evaluated depends on the values of tensors, so that it cannot be counted."""


@dataclass(frozen=True)
class Part:
    """Work of one kind.

    Attributes:
        network: Whose, as the configuration calls it.
        made_of: Card, file or class.
        work: "forward", or which gradient.
        parameters: Numbers in the network.
        rows: Rows given to it for one image; null where they are not counted.
        flops: For one image.
        kept_bytes: What one row keeps for its gradient, where there is one.
    """

    network: str
    made_of: str
    work: str
    parameters: int
    rows: float | None
    flops: float
    kept_bytes: float | None = None

    @property
    def flops_a_row(self) -> float | None:
        """Of one row."""
        return self.flops / self.rows if self.rows else None


@dataclass(frozen=True)
class Cost:
    """What was counted.

    Attributes:
        kind: "sampling" or "training".
        parts: Of one image; of a training step of one image.
        images: How many, in all steps of all processes.
        steps: Of training; null while sampling.
        processes: That train.
        precision: Of the configuration's trainer.
        state_bytes: Weights, gradients and the optimizer's state in training.
        notes: What a reader has to know.
    """

    kind: str
    parts: tuple[Part, ...]
    images: int
    steps: int | None = None
    processes: int = 1
    precision: str = "32-true"
    state_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """Of one image."""
        return sum(part.flops for part in self.parts)

    def gpu_hours(self, gpu: str, precision: str, utilisation: float) -> float:
        """Hours of one GPU for all images."""
        return self.flops * self.images / (PEAKS[gpu][precision] * utilisation) / 3600


@dataclass(frozen=True)
class Configuration:
    """What was read; nothing is built yet.

    Attributes:
        model: Specification of the module, without files of weights where there are none.
        data: Of the data; null where none is told.
        trainer: Arguments of the trainer.
    """

    model: dict[str, Any]
    data: dict[str, Any] | None
    trainer: dict[str, Any]


def read(files: Sequence[str], changes: Sequence[str] = ()) -> Configuration:
    """Configurations in their order, and options that go over them, as of `robustguide fit`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: None has a model.
    """
    documents = [yaml.safe_load(Path(file).read_text()) or {} for file in files]
    if not any(document.get("model") for document in documents):
        raise ValueError(
            f"{', '.join(files)} has no `model`; give the configurations of a whole command, such "
            "as those in the head of each file, with a --config before each."
        )
    parser = parser_of_parts()
    parser.add_argument("--model", type=LightningModule)
    parser.add_argument("--data", type=LightningDataModule)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    words = [
        f"--{part}={flow(document[part])}"
        for document in documents
        for part in ("model", "data", "trainer")
        if document.get(part)
    ]
    try:
        parsed = parser.parse_args([*words, *changes])
    except ArgumentError as error:
        raise ValueError(f"{', '.join(files)} cannot be read together: {error}") from error
    said = yaml.safe_load(parser.dump(parsed, skip_unset=False))
    return Configuration(weightless(said["model"]), said.get("data"), said["trainer"])


def parser_of_parts() -> ArgumentParser:
    """A parser without arguments, for which samplers are classes to choose from."""
    set_parsing_settings(subclasses_enabled=[Sampler])  # frozen dataclasses are final otherwise
    return ArgumentParser(exit_on_error=False)


def flow(part: Any) -> str:
    """YAML in one line, in which numbers may be infinite."""
    line: str = yaml.safe_dump(part, default_flow_style=True, width=math.inf)
    return line


def weightless(value: Any) -> Any:
    """A specification that reads no published weights: their shapes are known without them."""
    if isinstance(value, list):
        return [weightless(part) for part in value]
    if not isinstance(value, dict):
        return value
    if (found := call(value)) is None:
        return {key: weightless(part) for key, part in value.items()}
    name, said = found.class_path.rpartition(".")[2], dict(found.arguments)
    if name == "with_weights":
        return weightless(said["net"])
    if "pretrained" in said:
        said["pretrained"] = False
    if found.class_path.startswith("torchvision.") or name.endswith("_classifier"):
        said.pop("weights", None)
    path = said.get("path")
    if path is not None and not Path(path).expanduser().exists():
        if name == "load_autoencoder" and Path(path).name in cards():
            codec = cards()[Path(path).name].specification
            return dict(codec["init_args"]["autoencoder"])
        if name.startswith("load_") and (card := card_of_file(path)) is not None:
            said |= {"path": None, "card": card.name}
    return {
        "class_path": found.class_path,
        "init_args": {key: weightless(part) for key, part in said.items()},
    }


def built(kind: Any, specification: Mapping[str, Any], device: torch.device = META) -> Any:
    """An object of a specification; networks have no memory, unless another device is told.

    Raises:
        FileNotFoundError: A file that it reads is not there.
        ValueError: It cannot be built.
    """
    parser = parser_of_parts()
    parser.add_argument("--part", type=kind)
    try:
        with device:
            parsed = parser.parse_object({"part": deepcopy(dict(specification))})  # writes into it
            return parser.instantiate(parsed).part
    except (ArgumentError, ValueError) as error:
        raise innermost(error) from None


def cost_of(configuration: Configuration, num_samples: int | None = None) -> Cost:
    """FLOPs of a configuration.

    Args:
        configuration: Samples or trains.
        num_samples: Images to sample; null is the configuration's, or 50,000.

    Raises:
        ValueError: It does neither, or what it does depends on the values of tensors.
    """
    model = built(LightningModule, configuration.model)
    if isinstance(model, RobustClassification | Denoising):
        return of_training(model, configuration)
    if not isinstance(model, Generation):
        raise ValueError(
            f"{type(model).__name__} neither samples nor trains by steps that cost the same; give "
            "a configuration of Generation, RobustClassification or Denoising."
        )
    data = (configuration.data or {}).get("init_args") or {}
    images = num_samples or data.get("count") or IMAGES
    return Cost(
        "sampling", of_sampling(model), images, precision=precision_of(configuration.trainer)
    )


def precision_of(trainer: Mapping[str, Any]) -> str:
    """What the trainer computes in, as Lightning calls it."""
    return str(trainer.get("precision") or "32-true")


def of_sampling(model: Generation) -> tuple[Part, ...]:
    """Work of one image.

    Raises:
        DependsOnImagesError: What is evaluated depends on the values of tensors.
    """
    model.to(META)
    ledger = Ledger()
    y = torch.zeros(1, dtype=torch.long, device=META)
    noise = torch.zeros(1, *model.denoiser.shape, device=META)
    try:
        with ledger.between(model), Counter() as counter, torch.no_grad():
            x, terms = model.sampler.start(noise, model.denoiser), terms_of(model.guidance)
            x_0 = model.sampler(model.denoiser, terms, x, y, torch.zeros_like)
            if model.codec is not None:
                model.codec.decode(x_0.float())
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        raise DependsOnImagesError(
            "How often a network is asked depends on the images here, which are not made: "
            f"{str(error).splitlines()[0]} Sample a few, and read `cost` in their results.json."
        ) from error
    parts = list(parts_of(model, ledger.asked))
    if others := counter.flops - ledger.measured:
        parts.append(Part("guidance", "other networks of terms", "all", 0, None, others))
    return tuple(parts)


def parts_of(model: nn.Module, asked: Mapping[tuple[nn.Module, str], Asked]) -> Iterator[Part]:
    """A line for what a network was asked, and one for its gradients."""
    names = {module: name for name, module in model.named_modules()}
    for (module, work), each in asked.items():
        parameters = sum(p.numel() for p in module.parameters())
        about = short(names[module]), made_of(module)
        yield Part(*about, work, parameters, each.rows, each.flops)
        if each.pulled_rows:
            pulled = each.pulled_rows, each.pulled_flops, each.kept_bytes
            yield Part(*about, "gradient", parameters, *pulled)


def short(name: str) -> str:
    """As people call a part: that of the guidance by the name of its term."""
    return ".".join(name.split(".")[: 2 if name.startswith("guidance.") else 1])


def made_of(module: nn.Module) -> str:
    """Card or file of a network, or else the class inside of all wrappers."""
    for each in module.modules():
        metadata = vars(each).get("metadata")
        if metadata is not None and metadata.extra.get("card"):
            return str(metadata.extra["card"])
    inner = module
    while (held := next((c for n, c in inner.named_children() if n in WRAPPED), None)) is not None:
        inner = held
    return type(inner).__name__


@dataclass(frozen=True)
class Still(Attack):
    """Moves nothing."""

    def __call__(
        self, classifier: nn.Module, x: Tensor, sigma: Tensor, y: Tensor, generator: Any = None
    ) -> Tensor:
        """X."""
        return x


def of_training(model: RobustClassification | Denoising, configuration: Configuration) -> Cost:
    """FLOPs of a step of training, of each of its images.

    Raises:
        ValueError: No data are told.
    """
    if configuration.data is None:
        raise ValueError("Training needs `data`; give the configuration that names them.")
    data, trainer = built(LightningDataModule, configuration.data), configuration.trainer
    network = model.classifier if isinstance(model, RobustClassification) else model.denoiser
    thaw(network, model.rates)
    model.to(META)
    if model.space.codec is not None:
        model.space.codec.to(META)
    attack = getattr(model, "attack", None)
    if attack is not None:
        model.attack = Still()
    forward, backward, kept = step_of(model, network, data.shape)
    parameters = sum(p.numel() for p in network.parameters())
    about = short(next(n for n, m in model.named_modules() if m is network)), made_of(network)
    parts = [
        Part(*about, "forward", parameters, None, forward),
        Part(*about, "gradient", parameters, None, backward, kept),
    ]
    notes = []
    if attack is not None:
        model.attack = to_the_end(attack)
        if isinstance(attack, PGD) and attack.early_stop:
            notes.append("The attack costs at most that: a row rests once it is misclassified.")
        attacked = step_of(model, network, data.shape)[0] - forward
        parts.insert(0, Part(*about, f"attack, {attack_name(attack)}", parameters, None, attacked))
    steps, processes, said = run_of(trainer)
    images = steps * processes * data.batch_size * (trainer.get("accumulate_grad_batches") or 1)
    return Cost(
        "training",
        tuple(parts),
        images,
        steps,
        processes,
        precision_of(trainer),
        state_bytes(model),
        (*notes, *said),
    )


def to_the_end(attack: Attack | None) -> Attack | None:
    """The attack, in which no row rests before the last step, nor are others asked for besides."""
    if isinstance(attack, PGD) and (attack.early_stop or attack.batch_sizes):
        return replace(attack, early_stop=False, probe=False, batch_sizes=())
    return attack


def attack_name(attack: Attack) -> str:
    """In a few letters."""
    return f"PGD-{attack.steps}" if isinstance(attack, PGD) else type(attack).__name__


def step_of(
    model: LightningModule, network: nn.Module, shape: Sequence[int]
) -> tuple[float, float, float]:
    """FLOPs of the loss and of its gradient, and bytes kept for that, all for one image."""
    # a pass of free training is a step of its optimizer, and one of plain training
    is_free = isinstance(model, FreeClassification)
    step: Any = (RobustClassification if is_free else type(model)).training_step
    batch = torch.zeros(ROWS, *shape, device=META)
    y = torch.zeros(ROWS, dtype=torch.long, device=META)
    with Counter() as counter, warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", message="You are trying to `self.log")
        with keeping(network) as kept:
            loss = step(model, (batch, y, y), 0)
        forward = counter.flops
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        return forward / ROWS, (counter.flops - forward) / ROWS, kept.bytes / ROWS


def state_bytes(model: LightningModule) -> int | None:
    """Weights, gradients and the optimizer's state after a step; null where it needs a device."""
    try:
        configured: Any = model.configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        optimizer.step()
    except RuntimeError:  # a fused one
        return None
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*trained, *(parameter.grad for parameter in trained), *states]
    return sum(each.nbytes for each in tensors if isinstance(each, Tensor))


def run_of(trainer: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Steps and processes of a trainer, and what it leaves open."""
    notes = []
    steps = trainer.get("max_steps")
    if steps is None or steps < 1:
        steps = 1
        notes.append("One step alone: the configuration has no trainer.max_steps.")
    devices = trainer.get("devices", "auto")
    count = len(devices) if isinstance(devices, list) else devices
    if not str(count).isdigit():
        notes.append("One GPU: the configuration leaves trainer.devices open.")
        count = 1
    return steps, int(count) * (trainer.get("num_nodes") or 1), notes
