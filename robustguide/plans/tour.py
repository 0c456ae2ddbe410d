"""Command lines of the main job on digits."""

from collections.abc import Iterable
from pathlib import Path

from robustguide.plans.jobs import Job

HOME = "runs/demo"  # where the shipped configurations keep the demo's files
VALIDATION_SEEDS = 1_000_000  # samples 1,000,000 and on choose scales; 0 and on are reported
SCALES = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
GUIDED = {"plain_guided": "plain", "robust_guided": "robust", "classifier_free": "classifier_free"}
# The judge and the feature network are not of the same seed as anything they measure.
SEED_OFFSETS = {"denoiser": 0, "plain": 0, "robust": 0, "judge": 1000, "features": 2000}


def configure(configs: Path, folder: Path) -> Path:
    """Copies the digits configurations, with the demo's folder in place of the shipped one.

    Args:
        configs: Folder of the shipped configurations.
        folder: Where the demo's files go.

    Returns:
        Folder of the copies.

    Raises:
        FileNotFoundError: When the configurations are not there.
    """
    files = sorted(configs.glob("*/digits*.yaml"))
    if not (configs / "fit" / "digits_robust.yaml").is_file():
        raise FileNotFoundError(
            f"No configurations of the demo in {configs.resolve()}; run it in a clone of the "
            "project, or name the folder with --configs."
        )
    for file in files:
        copy = folder / "configs" / file.relative_to(configs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text().replace(HOME, folder.as_posix()))
    return folder / "configs"


def using(configs: Path, *names: str) -> tuple[str, ...]:
    """Words that name configurations, in order."""
    return tuple(word for name in names for word in ("--config", str(configs / f"{name}.yaml")))


def tour_jobs(configs: Path, seed: int) -> list[Job]:
    """Fits, then tests; the longest first, so that no core waits."""
    jobs = []
    for name, offset in SEED_OFFSETS.items():
        overlays = ["overlay/digits"]
        if name != "denoiser":
            overlays.append("overlay/digits_classifier")
        words = using(configs, *overlays, f"fit/digits_{name}")
        seeds = [
            f"--{key}={seed + offset}" for key in ("seed_everything", "model.seed", "data.seed")
        ]
        jobs.append(Job(name, ("fit", *words, *seeds)))
    needs = {"unguided": ("plain",)} | {name: ("plain", who) for name, who in GUIDED.items()}
    needs["classifier_free"] = ("plain",)
    for name, classifiers in needs.items():
        words = using(configs, "overlay/digits_generation", f"test/digits_{name}")
        jobs.append(Job(name, ("test", *words), ("denoiser", "judge", "features", *classifiers)))
    for name in ("plain", "robust"):
        words = using(configs, "overlay/digits", "test/digits_classifier")
        folder = configs.parent.as_posix()
        words += (
            f"--model.classifier.path={folder}/{name}/classifier.safetensors",
            f"--trainer.default_root_dir={folder}/{name}_test",
        )
        jobs.append(Job(f"{name}_test", ("test", *words), (name,)))
    return jobs


def scale_jobs(configs: Path, scales: Iterable[float] = SCALES, count: int = 300) -> list[Job]:
    """Every guided method at several scales, on validation seeds; needs a demo's checkpoints."""
    jobs = []
    for method, term in GUIDED.items():
        for scale in scales:
            name = f"{method}_{scale:g}"
            words = using(configs, "overlay/digits_generation", f"test/digits_{method}")
            words += (
                f"--model.guidance.{term}.scale={scale}",
                f"--data.first={VALIDATION_SEEDS}",
                f"--data.count={count}",
                f"--trainer.default_root_dir={configs.parent.as_posix()}/scales/{name}",
            )
            jobs.append(Job(name, ("test", *words)))
    return jobs
