"""Problems with known answers: Gaussian mixtures, and stand-ins that play back recordings."""

import math
from dataclasses import dataclass

import torch

from robustguide.interfaces import Classifier, Denoiser, Prediction
from robustguide.noise import Grid


class Mixture:
    """One Gaussian a class: p(x_0 | y) = N(means[y], covariances[y]), with prior weights.

    With noise the covariances gain sigma**2 times the identity, so all is known at every level:
    log p(x, y), its gradients, E[x_0 | x, y] and Cov[x_0 | x]. Computed in float64.
    """

    def __init__(self, means, covariances=None, priors=None):
        self.means = means.double()
        count, self.shape = len(means), tuple(means.shape[1:])
        size = math.prod(self.shape)
        if covariances is None:
            covariances = torch.eye(size).expand(count, size, size)
        self.covariances = covariances.double()
        self.priors = (torch.ones(count) / count if priors is None else priors).double()
        self.variances, self.axes = torch.linalg.eigh(self.covariances)

    def __len__(self):
        return len(self.means)

    def _whitened(self, x, sigma):
        """Offsets from the means along the axes of each class, and the noisy variances."""
        offset = x.double().flatten(1)[:, None] - self.means.flatten(1)
        along = torch.einsum("bkd,kde->bke", offset, self.axes)
        return along, self.variances + sigma.double()[:, None, None] ** 2

    def log_joint(self, x, sigma):
        """log p(x, y) for all y, (b, k)."""
        along, variances = self._whitened(x, sigma)
        log_density = -0.5 * (along**2 / variances + (2 * math.pi * variances).log()).sum(-1)
        return self.priors.log() + log_density

    def scores(self, x, sigma):
        """Gradients of log p(x | y) for all y, (b, k, ...)."""
        along, variances = self._whitened(x, sigma)
        scores = -torch.einsum("kde,bke->bkd", self.axes, along / variances)
        return scores.reshape(len(x), len(self), *self.shape)

    def score(self, x, sigma, y):
        """Gradient of log p(x | y), or of log p(x) where y is the null label."""
        posterior = self.log_joint(x, sigma).softmax(-1)
        known = torch.eye(len(self), dtype=torch.float64)[y.clamp(max=len(self) - 1)]
        weights = torch.where((y == len(self))[:, None], posterior, known)
        return torch.einsum("bk,bk...->b...", weights, self.scores(x, sigma))

    def posterior_covariance(self, x, sigma):
        """Cov[x_0 | x] of the whole mixture at one level, (b, d, d)."""
        sigmas = x.new_full((len(x),), sigma)
        posterior = self.log_joint(x, sigmas).softmax(-1)
        expected = x.double()[:, None] + sigma**2 * self.scores(x, sigmas)
        expected = expected.flatten(2)
        shrunk = self.variances * sigma**2 / (self.variances + sigma**2)
        within = torch.einsum("kde,ke,kfe->kdf", self.axes, shrunk, self.axes)
        second = within + expected[..., :, None] * expected[..., None, :]
        mean = torch.einsum("bk,bkd->bd", posterior, expected)
        second = torch.einsum("bk,bkde->bde", posterior, second)
        return second - mean[:, :, None] * mean[:, None, :]

    def moments(self):
        """Mean (d,) and covariance (d, d) of the data."""
        means = self.means.flatten(1)
        mean = self.priors @ means
        second = self.covariances + means[:, :, None] * means[:, None, :]
        return mean, torch.einsum("k,kde->de", self.priors, second) - torch.outer(mean, mean)

    def sample(self, count, generator):
        """Clean data (n, ...) and their classes (n,)."""
        y = torch.multinomial(self.priors, count, replacement=True, generator=generator)
        return self.sample_of(y, generator), y

    def sample_of(self, y, generator):
        """Clean data of given classes."""
        size = len(y), math.prod(self.shape)
        unit = torch.randn(size, generator=generator, dtype=torch.float64)
        offset = torch.einsum("nde,ne->nd", self.axes[y], self.variances[y].sqrt() * unit)
        return self.means[y] + offset.reshape(len(y), *self.shape)


class ExactDenoiser(Denoiser):
    """E[x_0 | x, y] of a mixture; `calls` lists the rows of every evaluation."""

    def __init__(self, mixture, has_null=True):
        super().__init__()
        self.mixture = mixture
        self.num_classes, self.shape, self.has_null = len(mixture), mixture.shape, has_null
        self.calls = []

    def predict(self, x, sigma, y):
        self.calls.append(len(x))
        square = sigma.double().reshape(-1, 1, 1, 1) ** 2
        return Prediction((x.double() + square * self.mixture.score(x, sigma, y)).to(x.dtype))


class ExactClassifier(Classifier):
    """log p(x, y) of a mixture as logits; `calls` lists the rows of every evaluation."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture
        self.num_classes = len(mixture)
        self.calls = []

    def forward(self, x, sigma):
        self.calls.append(len(x))
        return self.mixture.log_joint(x, sigma).to(x.dtype)


def plane():
    """Three round clusters in the plane, as images of 1 x 1 x 2."""
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).reshape(3, 1, 1, 2)
    return Mixture(means, priors=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def tilted(classes=4, shape=(2, 2, 1), seed=0):
    """A mixture whose classes have covariances, axes and weights of their own."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    roots = torch.randn(classes, size, size, generator=generator, dtype=torch.float64)
    covariances = 0.1 * roots @ roots.mT + 0.05 * torch.eye(size)
    priors = torch.rand(classes, generator=generator) + 0.2
    means = torch.randn(classes, *shape, generator=generator)
    return Mixture(means, covariances, priors / priors.sum())


def noisy(mixture, sigmas, seed=1, dtype=torch.float64):
    """States x at the given levels, sigma (b,) and true classes y (b,), which take turns."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(sigmas)) % len(mixture)
    x_0 = mixture.sample_of(y, generator)
    sigma = torch.tensor(sigmas, dtype=dtype)
    noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    return (x_0 + sigma.reshape(-1, 1, 1, 1) * noise).to(dtype), sigma, y


class RecordedNoise:
    """Answers a sampler's calls for noise from a list, in order."""

    def __init__(self, draws):
        self.draws = list(draws)

    def __call__(self, x):
        return self.draws.pop(0).to(x)


@dataclass(frozen=True)
class ListedGrid(Grid):
    """Given levels."""

    levels: tuple[float, ...]

    def sigmas(self):
        return self.levels

    def start(self, noise, sigma):
        return noise * sigma


def no_noise(x):
    """For samplers that must not ask for any."""
    raise AssertionError("a deterministic sampler asked for noise")


def ece(logits, y, bins=15):
    """Guo et al. (2017), eq. 3, bin by bin."""
    p = logits.double().softmax(-1)
    confidence, label = p.max(-1)
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            gap = (label == y)[inside].double().mean() - confidence[inside].mean()
            total += inside.double().mean() * gap.abs()
    return float(total)
