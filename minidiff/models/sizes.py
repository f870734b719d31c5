"""One set of classes in several sizes: flat arguments of each network, by the name of the model."""

SIZES = {
    "tiny": {
        "vae": dict(channels=(32, 64), layers=1, groups=8, patch=2),
    },
}
