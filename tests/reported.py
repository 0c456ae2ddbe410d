"""Run folders as runs leave them, small, with numbers of one's own."""

import copy
import json

import tiny
import torch
from safetensors.torch import save_file

REFERENCE = {"data": "Digits", "split": "train", "count": 1259, "digest": "836a", "file": None}


def spec(class_path, **arguments):
    return {"class_path": f"robustguide.{class_path}", "init_args": arguments}


def distance(value, half=0.5, n=1000, reference=REFERENCE, **facts):
    """A Frechet distance as Quality tells it."""
    return {
        "value": value,
        "n": n,
        "shown": f"FD-{n}@toy",
        "lower_is_better": True,
        "extractor": "toy@1",
        "reference": reference,
        "interval": [value - half, value + half],
        "replicates": [value] * 3,
        **facts,
    }


def scaled(scale):
    term = spec("guidance.ClassifierGuidance", classifier=spec("checkpoints.load_classifier"))
    return spec("guidance.Scaled", scale=scale, term=term)


def generation(value=1.5, *, guidance=None, evaluations=50.0, **changes):
    """The results.json of a generation."""
    sampler = spec("samplers.Ancestral", grid=spec("noise.ChainGrid", spacing="50"))
    sigma = [10.0, 1.0, 0.1]
    found = {
        "run": {
            "stage": "test",
            "config": {
                "model": spec("modules.Generation", sampler=sampler, guidance=guidance),
                "data": spec("data.SeedData", first=0, count=1000, num_classes=3, labels=None),
            },
            "seed": 0,
            "versions": {"robustguide": "0.1.0"},
            "git_commit": "0123456789abcdef",
            "world_size": 1,
            "checkpoints": {"denoiser.safetensors": "aa" * 32},
            "ended": "2026-01-02T03:04:05Z",
        },
        "metrics": {"frechet/toy": distance(value)},
        "curves": {
            "frechet/toy": {"sigma": sigma, "frechet/toy": [9.0, 4.0, value]},
            "trajectory": {
                "sigma": sigma,
                "ece": [0.3, 0.2, 0.1],
                "label_agreement": [0.4, 0.6, 0.8],
            },
        },
        "reliability": {
            "trajectory": {
                "sigma": sigma,
                "count": [[4.0, 4.0]] * 3,
                "confidence": [[1.0, 3.0]] * 3,
                "correct": [[1.0, 4.0]] * 3,
            }
        },
        "cost": {
            "seconds": 12.25,
            "denoiser_evaluations": evaluations,
            "reference_evaluations": 0.0,
        },
    }
    return tiny.merged(found, copy.deepcopy(changes))


def classification(accuracy=0.75, *, attack="L2, radius 1", **changes):
    """The results.json of a classifier's test."""
    found = {
        "run": {
            "stage": "test",
            "config": {
                "model": spec("modules.ReportCard"),
                "data": spec("data.Images", source=spec("data.Digits", seed=0)),
            },
            "seed": 3,
            "versions": {},
        },
        "metrics": {
            "accuracy": {"value": accuracy, "n": 359},
            "robust_accuracy": {"value": 0.5, "n": 359, "attack": attack},
            "integral_ece": {"value": 0.1, "n": 359, "grid": [0.1, 1.0], "interval": [0.05, 0.2]},
        },
        "curves": {
            "classifier": {
                "sigma": [0.1, 1.0],
                "accuracy": [0.9, 0.6],
                "robust_accuracy": [0.7, 0.3],
                "ece": [0.05, 0.15],
            }
        },
        "cost": {"seconds": 4.0},
    }
    return tiny.merged(found, copy.deepcopy(changes))


def leave(folder, results, greys=None, **tensors):
    """Writes a run folder; greys are values of whole images, by their seeds."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    if greys is not None:
        index = torch.tensor(list(greys))
        images = torch.tensor(list(greys.values()), dtype=torch.uint8)
        images = images[:, None, None, None].repeat(1, 1, 4, 4)
        kept = {"pixels": images, "index": index, "y": index % 3} | tensors
        save_file(kept, folder / "samples.safetensors")
    return folder


def frames(folder, seeds=(0, 1), steps=3, shape=(1, 4, 4), generator=None):
    """Leaves frames of constant images, or of noise."""
    size = (len(seeds), steps, *shape)
    x = torch.full(size, 0.25)
    if generator is not None:
        x = torch.randn(size, generator=generator)
    index = torch.tensor(seeds)
    tensors = {
        "x": x.half(),
        "denoised": ((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8),
        "displacement": x.clone(),
        "index": index,
        "y": index % 3,
        "step": torch.arange(steps),
        "sigma": torch.logspace(1, -1, steps, dtype=torch.float64),
    }
    save_file(tensors, folder / "frames.safetensors")
    return folder
