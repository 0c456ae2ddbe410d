"""The recorded EDM2 networks."""

from golden_files import load, weights

from robustguide.denoisers.edm2 import EDM2Denoiser
from robustguide.nets.edm2 import EDM2UNet


def edm2_denoiser(name):
    """A golden's description, tensors, and its network in evaluation mode."""
    description, tensors = load(name)
    arguments = dict(description["constructor"])
    width = arguments.pop("logvar_channels")
    net = EDM2UNet(**arguments)
    size = arguments["img_resolution"]
    shape = (arguments["img_channels"], size, size)
    denoiser = EDM2Denoiser(net, arguments["label_dim"], shape, logvar_channels=width).eval()
    state = {ours(key): value for key, value in weights(tensors).items()}
    denoiser.load_state_dict(state, strict=True)
    return description, tensors, denoiser


def ours(key):
    """Our name of a published parameter."""
    return f"net.{key.removeprefix('unet.')}" if key.startswith("unet.") else key


def labels(tensors, batch):
    """Labels as indices; zeros, which an unconditional network does not read, where none are."""
    onehot = tensors.get("in.labels_onehot")
    return tensors["in.sigma"].new_zeros(batch).long() if onehot is None else onehot.argmax(1)
