"""EluCD's knobs, chosen by calibration along the reverse process. Ma et al. (2023), section 4.

    beta      Softplus(beta) for every ReLU
    joint     tau_1 of  tau_1 f_y - log sum_i exp(tau_2 f_i)         (eq. 4), whose gradient guides
    marginal  tau_2
    strength  gamma of the sine schedule                             (eq. 5)

A setting is judged by what the classifier says of the images that it is shown while it guides. The
probability is ours: eq. 4 for every class, made to sum to 1, is

    p(c) = softmax(tau_1 f)_c

since its second term is the same for all classes. So the marginal temperature and the schedule
count by the samples alone. The truth is the conditioning label, and the error the mean ECE over
noise levels: Ma et al. (2024), eq. 1.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from robustguide.classifiers import Smooth
from robustguide.data import SeedData
from robustguide.guidance import (
    AtDenoised,
    Guidance,
    Guided,
    Scaled,
    Tempered,
    View,
    check_gradients,
)
from robustguide.interfaces import Classifier, Denoiser
from robustguide.metrics import Answers, AnswersByLevel
from robustguide.modules.cost import Evaluated, counted, timed
from robustguide.modules.generate import Seeds, spread
from robustguide.modules.kept import hash_of_network
from robustguide.modules.knob_report import (
    TERM,
    description,
    draw,
    measured,
    print_table,
    write,
    write_overlay,
)
from robustguide.modules.knob_trials import (
    Knobs,
    Ledger,
    Search,
    Trial,
    all_combinations,
    fingerprint,
    most_tried,
    one_at_a_time,
    replay,
    worded,
)
from robustguide.modules.recorded import Recorded
from robustguide.noise import finest
from robustguide.samplers import Ancestral, Sampler, SeededNoise, Sine


class KnobSearch(LightningModule):
    """Tries settings of EluCD's knobs on samples, and exports the best calibrated classifier.

    `fit` on a `SeedData` reads no images: each epoch samples all its numbers with one setting.
    Take numbers that no report uses. What was found of a setting is kept in `knobs.jsonl` of the
    run folder, and the same command goes on from there. At the end: `knobs.json`, `knobs.png` and
    `guidance.yaml`, an overlay for `robustguide test` that names the exported classifier.

    Calibration is EluCD's yardstick and not one of images. Guidance that makes a caricature of
    every sample is certain of its label and right, so that its ECE is 0; a classifier that knows
    nothing and says so has an ECE of 0 as well. And where guidance alone makes the classes, the
    samples follow the classifier: with tau_1 = tau_2 = tau they are about those of p(x) p(y),
    p = softmax(tau f), whose posterior is p whatever tau is (derived here). So read agreement and
    confidence beside the ECE, and measure images before you believe it.

    Args:
        denoiser: Unguided denoiser.
        sampler: How it is sampled; `Ancestral` where strengths are searched.
        classifier: As it is, with ReLUs where betas are searched. It is not trained.
        scale: Of the guidance.
        view: Where the classifier looks; null is the predicted clean image.
        betas: Of Softplus; .inf is the ReLU. The search starts from the first value of each list.
        joints: Temperatures tau_1, which multiply logits.
        marginals: Temperatures tau_2.
        strengths: Gammas of `robustguide.samplers.Sine`, in place of the sampler's
            `guidance_variance`; null leaves the sampler as it is.
        search: One knob after another as in the paper's ablations, until nothing changes, or all
            combinations.
        rounds: At most so many times through all knobs, one after another.
        watched_steps: How many steps are judged, evenly spread, the first and the last included.
        num_bins: Confidence bins of the ECE.

    Raises:
        ValueError: For a list that is empty or repeats a value, values that a knob cannot have, or
            a denoiser, sampler and classifier that do not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        classifier: Classifier,
        scale: float = 1.0,
        view: View | None = None,
        betas: Sequence[float] = (math.inf,),
        joints: Sequence[float] = (1.0,),
        marginals: Sequence[float] = (1.0,),
        strengths: Sequence[float] | None = None,
        search: Literal["coordinate", "grid"] = "coordinate",
        rounds: int = 3,
        watched_steps: int = 10,
        num_bins: int = 15,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.denoiser, self.sampler, self.classifier = denoiser, sampler, classifier
        self.view = view or AtDenoised()
        self.scale, self.num_bins = scale, num_bins
        self.choices = {"beta": betas, "joint": joints, "marginal": marginals}
        self.choices |= {} if strengths is None else {"strength": strengths}
        self.rounds = rounds if search == "coordinate" else None
        self.watched = spread(len(sampler.levels(denoiser)) - 1, watched_steps)
        self.levels = tuple(sampler.levels(denoiser)[step] for step in self.watched)
        self._check()
        self.requires_grad_(False)
        # DistributedDataParallel refuses a module in which nothing can be trained
        self.nothing = nn.Parameter(torch.zeros(()))
        self.trials: dict[Knobs, Trial] = {}
        self.tried: list[Trial] = []
        self.pending: Knobs | None = None
        self.chosen: Trial | None = None
        self.evaluated = Evaluated()

    def _check(self) -> None:
        """See the class."""
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds counts turns of all knobs, at least 1; got {self.rounds}.")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be a positive number, got {self.scale}: 1 is EluCD's.")
        for name, values in self.choices.items():
            if not values or len(set(values)) != len(values):
                raise ValueError(
                    f"{name}s lists each value to try once, and one at least; got {list(values)}."
                )
        if "strength" in self.choices and not isinstance(self.sampler, Ancestral):
            raise ValueError(
                f"strengths are of the variance of robustguide.samplers.Ancestral, which a "
                f"{type(self.sampler).__name__} has not; leave strengths out."
            )
        self.sampler.check(self.denoiser)
        for name, values in self.choices.items():
            for value in values:
                self.guided_by(replace(self.start, **{name: value}))
        terms = self.terms(self.guided_by(self.start)[1])
        Guided(self.denoiser, terms, self.sampler.clip)
        check_gradients(self.denoiser, terms)

    @property
    def start(self) -> Knobs:
        """The first value of each list."""
        return Knobs(**{name: values[0] for name, values in self.choices.items()})

    @property
    def trying(self) -> Search:
        """The search from its beginning."""
        if self.rounds is None:
            return all_combinations(self.choices)
        return one_at_a_time(self.choices, self.rounds)

    @property
    def specification(self) -> Any:
        """Plain description of `classifier`, at the end with its Softplus; null without one."""
        described = self.hparams.get("classifier")
        if self.chosen is None or math.isinf(self.chosen.knobs.beta):
            return described
        arguments = {"classifier": described, "beta": self.chosen.knobs.beta}
        smooth = {"class_path": "robustguide.classifiers.Smooth", "init_args": arguments}
        return smooth if isinstance(described, dict) else described

    @property
    def notes(self) -> dict[str, Any]:
        """What the exported file is to say."""
        if self.chosen is None:
            return {}
        knobs: dict[str, Any] = worded(self.chosen.knobs.named)
        return {"knobs": knobs, "integral_ece": self.chosen.integral_ece}

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the setting that was chosen, for `results.json`."""
        return {} if self.chosen is None else measured(self.chosen)

    @property
    def curves(self) -> dict[str, Any]:
        """By noise level, at the start and as chosen."""
        found = {"start": self.trials.get(self.start), "chosen": self.chosen}
        return {f"knobs_{name}": trial.curves for name, trial in found.items() if trial}

    def guided_by(self, knobs: Knobs) -> tuple[Sampler, Recorded]:
        """Sampler of a setting, and what guides."""
        sampler = self.sampler
        if knobs.strength is not None and isinstance(sampler, Ancestral):
            sampler = replace(sampler, guidance_variance=Sine(knobs.strength))
        objective = Tempered(knobs.joint, knobs.marginal)
        return sampler, Recorded(self.smooth(knobs.beta), objective, self.view, self.watched)

    def terms(self, recorded: Recorded) -> dict[str, Guidance]:
        """Terms with which it guides."""
        return {TERM: Scaled(recorded, scale=self.scale)}

    def smooth(self, beta: float) -> Classifier:
        """The classifier with Softplus(beta), or itself."""
        return self.classifier if beta == math.inf else Smooth(self.classifier, beta)

    def setup(self, stage: str) -> None:
        """Compares labels, and reads what was found before.

        Raises:
            ValueError: For other data than numbers, or other classes.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, SeedData):
            raise ValueError(
                "A search of knobs samples numbers and reads no images; give it a "
                f"robustguide.data.SeedData in place of {type(data).__name__}."
            )
        if data.num_classes != self.classifier.num_classes:
            raise ValueError(
                f"The seeds have labels of {data.num_classes} classes, the classifier knows "
                f"{self.classifier.num_classes}; set data.num_classes, or wrap the classifier in "
                "robustguide.classifiers.Relabelled."
            )
        # no process changes a tensor: nothing is to be sent from one to the others
        tensors = [*dict(self.named_parameters()), *dict(self.named_buffers())]
        self._ddp_params_and_buffers_to_ignore = [name for name in tensors if name != "nothing"]
        self.train()  # until the trainer has looked: it warns of networks that are not
        self.data = data
        self.recall(data)
        most, limit = most_tried(self.choices, self.rounds), self.trainer.max_epochs
        self.trainer.fit_loop.max_epochs = most if limit in (None, -1) else min(most, limit)

    def recall(self, data: SeedData) -> None:
        """Reads the trials of equal networks, sampler and numbers; one process does."""
        found: Any = None
        if self.trainer.is_global_zero:
            ledger = Ledger(self.folder / "knobs.jsonl", self.made_from(data))
            found = ledger, ledger.read()
        self.ledger, self.trials = self.trainer.strategy.broadcast(found)

    def made_from(self, data: SeedData) -> str:
        """Fingerprint of all that decides what is found of a setting."""
        networks = {"denoiser": self.denoiser, "classifier": self.classifier}
        described = {
            name: hash_of_network(net, self.hparams.get(name)) for name, net in networks.items()
        }
        how = [self.sampler, self.view, self.scale, self.levels, self.num_bins]
        numbers = [data.indices.start, data.y.tolist(), str(self.trainer.precision)]
        return fingerprint([described, how, numbers])

    @property
    def folder(self) -> Path:
        """Where the run leaves its files."""
        return Path(self.trainer.default_root_dir)

    def advance(self) -> None:
        """Finds what to try next, and stops the trainer where that is nothing."""
        errors = {knobs: trial.error for knobs, trial in self.trials.items()}
        tried, self.pending = replay(self.trying, errors)
        self.tried = [self.trials[knobs] for knobs in tried]
        self.trainer.should_stop = self.pending is None

    def on_train_start(self) -> None:
        """Sets up the first setting that nothing is known of."""
        self.eval()
        self.advance()

    def on_train_epoch_start(self) -> None:
        """New terms and new sums."""
        if self.pending is not None:
            self.setting = self.guided_by(self.pending)
        levels, num_classes = len(self.levels), self.classifier.num_classes
        self.answers = AnswersByLevel(levels, num_classes, self.num_bins)
        if finest(self.device) == torch.float64:
            self.answers.to(self.device)
        self.broken = torch.zeros((), device=self.device)

    def training_step(self, batch: Seeds, batch_idx: int) -> None:
        """Samples a batch of numbers, and keeps the answers. Nothing is trained."""
        index, y = batch
        logits = self.sampled(batch)
        self.broken += (~logits.isfinite()).sum()
        self.answers.update(logits.nan_to_num(), y, index)

    def sampled(self, batch: Seeds) -> Float[Tensor, "levels b k"]:
        """Logits times the joint temperature, at the watched steps of guided sampling."""
        assert self.pending is not None
        (index, y), (sampler, recorded) = batch, self.setting
        terms, noise = self.terms(recorded), SeededNoise(index.tolist())
        x = sampler.start(noise.draw(self.denoiser.shape, self.device), self.denoiser)
        with (
            timed(self.evaluated, self.device),
            counted(self.denoiser, nn.ModuleDict(terms), self.evaluated),
        ):
            sampler(self.denoiser, terms, x, y, noise)
        self.evaluated.images += len(index)
        return self.pending.joint * recorded.taken()

    def on_train_epoch_end(self) -> None:
        """Keeps what was found; a setting that was not sampled to the end is tried again."""
        answers: Answers = self.answers.compute()
        broken: Any = self.trainer.strategy.reduce(self.broken, reduce_op="sum")
        if self.pending is None or answers.n < len(self.data.indices):
            return
        trial = Trial.of(self.pending, self.levels, answers, broken=bool(broken > 0))
        if self.trainer.is_global_zero:
            self.ledger.add(trial)
        self.trials[self.pending] = trial
        self.log("fit/integral_ece", trial.integral_ece, prog_bar=True, sync_dist=True)
        self.log("fit/label_agreement", trial.agreement, sync_dist=True)
        self.advance()

    def on_train_end(self) -> None:
        """Chooses the best so far, of equal ones the first, and reports."""
        if not self.tried and getattr(self.trainer, "fast_dev_run", False):
            return
        if not self.tried:
            raise ValueError(
                "No setting was tried on all numbers; leave out trainer.limit_train_batches and "
                "let the trainer run for an epoch at least."
            )
        self.chosen = min(self.tried, key=lambda trial: trial.error)
        if self.chosen.error == math.inf:
            raise ValueError(
                f"Sampling broke down with each of {len(self.tried)} settings; lower the scale, "
                f"{self.scale}."
            )
        self.classifier = self.smooth(self.chosen.knobs.beta)
        if self.trainer.is_global_zero:
            self.report(self.chosen)

    def report(self, chosen: Trial) -> None:
        """Writes and prints what was found."""
        if self.pending is not None:
            rank_zero_info("Not all settings were tried; the same command goes on.")
        start, folder = self.trials.get(self.start, chosen), self.folder
        print_table(self.tried, chosen)
        draw(folder / "knobs.png", start, chosen)
        seeds = {"first": self.data.indices.start, "count": len(self.data.indices)}
        write(
            folder / "knobs.json",
            self.tried,
            chosen,
            made_from=self.ledger.made_from,
            finished=self.pending is None,
            scale=self.scale,
            seeds=seeds,
        )
        write_overlay(
            folder / "guidance.yaml",
            chosen.knobs,
            folder / "classifier.safetensors",
            self.scale,
            self.hparams.get("view") or description(self.view),
        )

    def configure_optimizers(self) -> list[Any]:
        """Nothing is trained."""
        return []
