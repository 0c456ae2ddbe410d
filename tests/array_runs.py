"""A generation without any file: random networks sample digits and measure them."""

import json

import tiny


def measured(count=24, steps=4):
    """All that is measured of a generation; a seed makes the same networks in every process."""
    extractor = tiny.spec(
        "metrics.ClassifierFeatures", network=tiny.classifier(width=12), name="tiny_features"
    )
    callbacks = [
        tiny.spec("callbacks.TrajectoryCalibration", resamples=20),
        tiny.spec("callbacks.ClassAccuracy", judge=tiny.classifier(width=8)),
        tiny.spec("callbacks.Quality", extractor=extractor),
        tiny.spec("callbacks.SampleGrid", count=7),
    ]
    config = tiny.generation("", count=count, callbacks=callbacks, observer=tiny.classifier())
    digits = tiny.spec("data.Digits")
    data = {"batch_size": 4, "reference": digits, "reference_split": "test"}
    config["data"]["init_args"] |= data
    config["model"]["init_args"] |= {"denoiser": tiny.denoiser(), "sampler": tiny.ancestral(steps)}
    return config


def found(folder):
    """What a run measured, but for its time and place."""
    told = json.loads((folder / "results.json").read_text())
    cost = {k: v for k, v in told["cost"].items() if "second" not in k and "memory" not in k}
    return {"metrics": told["metrics"], "curves": told["curves"], "cost": cost}


def same(ours, theirs, tolerance=1e-9):
    """Compares plain data, numbers within a tolerance."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same(ours[key], theirs[key], tolerance)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other, tolerance)
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= tolerance * max(1.0, abs(theirs)), (ours, theirs)
    else:
        assert ours == theirs
