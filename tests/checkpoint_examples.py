"""Small networks of every kind with the specifications that build them."""

import torch

from robustguide.checkpoints import build

ENCODER = {
    "class_path": "robustguide.nets.EncoderUNet",
    "init_args": {
        "image_size": 8,
        "in_channels": 1,
        "model_channels": 16,
        "out_channels": 5,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 2],
        "pool": "attention",
    },
}
LEVELS = {"class_path": "robustguide.noise.linear_levels", "init_args": {"steps": 50}}
RESNET = {"class_path": "torchvision.models.resnet18", "dict_kwargs": {"num_classes": 5}}


def spec(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def unet(out_channels):
    arguments = dict(ENCODER["init_args"])
    del arguments["pool"]
    arguments |= {"out_channels": out_channels, "num_classes": 5, "num_null_labels": 1}
    return spec("robustguide.nets.UNet", **arguments)


OFF_THE_SHELF = spec(
    "robustguide.classifiers.OffTheShelf",
    net=RESNET,
    num_classes=5,
    mean=[0.1, 0.2, 0.3],
    std=[0.5, 0.6, 0.7],
    size=24,
)
CLASSIFIERS = {
    "timed": spec("robustguide.classifiers.Timed", net=ENCODER, levels=LEVELS, num_classes=5),
    "sigma": spec("robustguide.classifiers.SigmaConditioned", net=ENCODER, num_classes=5),
    "torchvision": OFF_THE_SHELF,
    "timm": spec(
        "robustguide.classifiers.OffTheShelf",
        net={
            "class_path": "timm.create_model",
            "init_args": {"model_name": "resnet10t", "pretrained": False},
            "dict_kwargs": {"num_classes": 5},
        },
        num_classes=5,
    ),
    "nested": spec(
        "robustguide.classifiers.NoiseConditioned",
        classifier=OFF_THE_SHELF,
        levels=LEVELS,
        layers={"net.layer1": 64},
        width=8,
    ),
    "resized": spec("robustguide.classifiers.Resized", classifier=OFF_THE_SHELF, size=16),
    "relabelled": spec(
        "robustguide.classifiers.Relabelled", classifier=OFF_THE_SHELF, labels=[4, 2, 0, 1, 3]
    ),
}
DENOISERS = {
    "eps": spec(
        "robustguide.denoisers.EpsDenoiser",
        net=unet(2),
        levels=LEVELS,
        num_classes=5,
        shape=[1, 8, 8],
        learns_variance=True,
    ),
    "edm": spec("robustguide.denoisers.EDMDenoiser", net=unet(1), num_classes=5, shape=[1, 8, 8]),
    "unconditional": spec(
        "robustguide.denoisers.Unconditional",
        denoiser=spec(
            "robustguide.denoisers.EDMDenoiser", net=unet(1), num_classes=5, shape=[1, 8, 8]
        ),
    ),
}
NAMES = ["zero", "one", "two", "three", "four"]


def trained(specification, trusted=()):
    """A module none of whose parameters and buffers has its initial value."""
    module = build(specification, trusted).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
    return module


def shape_of(specification):
    """Shape of the images of one of the networks above."""
    return [1, 8, 8] if "robustguide.nets" in str(specification) else [3, 8, 8]


def inputs(specification):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape_of(specification), generator=generator)
    return x, torch.tensor([0.3, 4.0])


def assert_same(loaded, module, *arguments, method="forward"):
    """Tensors bit for bit, answers to rounding: some CPUs round by where a matrix lies."""
    theirs = module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        made, want = (getattr(each, method)(*arguments) for each in (loaded, module))
    torch.testing.assert_close(made, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
