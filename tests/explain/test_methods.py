"""The methods' formulas against pytorch-grad-cam, and scaling maps for the eye."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import pytorch_grad_cam as peers
import timm
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from litcam.explain import CAM, METHODS, SLOW_METHODS, scale_maps
from litcam.explain.methods.formulas import find_method


class EigenCAM(peers.EigenCAM):
    """With a sign that does not depend on the SVD's."""

    def get_cam_image(self, images, layer, targets, activations, *rest):
        maps = peers.EigenCAM.get_cam_image(self, images, layer, targets, activations, *rest)
        rises = (maps * np.abs(activations).sum(1)).sum((1, 2), keepdims=True) >= 0
        return np.where(rises, maps, -maps)


PEERS = {
    "gradcam": peers.GradCAM,
    "gradcam++": peers.GradCAMPlusPlus,
    "xgradcam": peers.XGradCAM,
    "hirescam": peers.HiResCAM,
    "layercam": peers.LayerCAM,
    "eigencam": EigenCAM,
}
SMALL = {
    "cnn": ("resnet10t", "layer4", {}),
    "vit": (
        "vit_tiny_patch16_224",
        "blocks.1.norm1",
        {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        "norm",
        {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    ),
}
RESHAPE = {
    "cnn": None,
    "vit": lambda x: x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2),
    "swin": lambda x: x.permute(0, 3, 1, 2),
}
# FinerCAM is Grad-CAM of another score: test_finer_and_several.py.
methods = pytest.mark.parametrize("method", [name for name in METHODS if name != "finercam"])


def raw(method, activations, gradients):
    """A peer's maps before its ReLU and scaling."""
    kind = PEERS[method]
    weights = kind.get_cam_weights
    stub = SimpleNamespace(get_cam_weights=lambda *args: weights(None, *args))
    return kind.get_cam_image(stub, None, None, None, activations.numpy(), gradients.numpy(), False)


@methods
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 5, 7), (1, 40, 2, 3)])
@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_the_formula_is_that_of_grad_cam(method, signed, shape, scale):
    # In double: where a denominator of Grad-CAM++ is near 0 float32 has few digits, on both sides.
    activations, gradients = torch.randn(2, *shape, dtype=torch.float64)
    gradients = scale * gradients
    if not signed:
        activations, gradients = activations.relu(), gradients * (torch.rand(shape) < 0.5)
    maps = METHODS[method](activations, gradients)
    assert maps.shape == (shape[0], *shape[2:])
    theirs = torch.from_numpy(raw(method, activations, gradients))
    assert (maps - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@methods
@pytest.mark.parametrize("family", SMALL)
def test_a_network_is_explained_as_by_grad_cam(method, family):
    name, layer, options = SMALL[family]
    network = timm.create_model(name, num_classes=5, **options).eval()
    images, classes = torch.randn(2, 3, 64, 64), [1, 3]
    with CAM(network, method, layer) as cam, torch.no_grad():
        network(images)
    module, targets = network.get_submodule(layer), [ClassifierOutputTarget(c) for c in classes]
    with PEERS[method](network, [module], reshape_transform=RESHAPE[family]) as peer:
        theirs = torch.from_numpy(peer(images, targets))
    assert (cam.heatmaps(classes) - theirs).abs().max() < 1e-5


@methods
def test_no_activation_and_no_gradient_are_no_map(method):
    something, nothing = torch.randn(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    assert not METHODS[method](nothing, something).any()
    assert not METHODS[method](nothing, nothing).any()
    if method != "eigencam":
        assert not METHODS[method](something, nothing).any()


@methods
def test_a_division_by_nothing_is_no_nan(method):
    # Sums over positions of -1e-7 and of -2 for a gradient of 1: the peers' denominators are 0.
    activations, gradients = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    activations[0, 0, 0, 0], activations[0, 1, 0, 0] = -1e-7, -2 - 1e-6
    assert METHODS[method](activations, gradients).isfinite().all()


@methods
def test_images_do_not_see_each_other(method):
    activations, gradients = torch.randn(3, 6, 4, 4), torch.randn(3, 6, 4, 4)
    expected = METHODS[method](activations, gradients)
    activations[1, 2, 0, 0] = float("nan")
    maps = METHODS[method](activations, gradients)
    assert maps[1].isnan().any()
    assert torch.allclose(maps[[0, 2]], expected[[0, 2]], atol=1e-5)


def test_eigencam_is_warm_where_the_network_is_active_and_knows_no_class():
    activations = 0.1 * torch.rand(1, 6, 5, 5)
    activations[..., 1, 2] += torch.arange(1, 7)
    for sign in (1, -1):
        maps = METHODS["eigencam"](sign * activations, torch.randn(1, 6, 5, 5))
        assert maps.flatten().argmax() == 1 * 5 + 2
        assert torch.equal(maps, METHODS["eigencam"](sign * activations, torch.zeros(1, 6, 5, 5)))


def stretch(a):
    return (a - a.min()) / (a.max() - a.min())


@pytest.mark.parametrize("size", [(7, 7), (56, 56), (50, 33)])
def test_scaling_equals_opencv(size):
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
    ours = scale_maps(maps, size)
    for one, expected in zip(ours.numpy(), maps.numpy(), strict=True):
        resized = cv2.resize(stretch(expected), size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(one, stretch(resized), atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_scale_of_a_map_does_not_matter(factor):
    maps = torch.rand(2, 4, 5, 5)
    difference = scale_maps(maps * factor, (20, 20)) - scale_maps(maps, (20, 20))
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-20, 1e20])
def test_a_constant_map_is_nothing(value):
    maps = torch.full((1, 7, 7), value)
    assert not scale_maps(maps, (30, 30)).any()
    assert not scale_maps(maps * (1 + 1e-7 * torch.rand(1, 7, 7)), (30, 30)).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_map_that_is_not_finite_is_nothing_and_spoils_no_other(bad):
    maps = torch.rand(2, 3, 6, 6)
    good = scale_maps(maps, (12, 12))
    maps[0, 1, 2, 2] = bad
    scaled = scale_maps(maps, (12, 12))
    assert not scaled[0, 1].any()
    scaled[0, 1] = good[0, 1]
    assert torch.equal(scaled, good)


def test_leading_axes_and_types_are_kept():
    maps = torch.rand(2, 3, 4, 6)
    scaled = scale_maps(maps.half(), (8, 9))
    assert scaled.shape == (2, 3, 8, 9)
    assert scaled.dtype == torch.float32
    assert scaled.amin() == 0
    assert scaled.amax() == 1
    assert torch.equal(scale_maps(maps[0, 0], (8, 9)), scale_maps(maps, (8, 9))[0, 0])


def test_an_unknown_method_is_offered_close_names():
    with pytest.raises(ValueError, match=r"'grad-cam' is unknown; did you mean gradcam"):
        CAM(torch.nn.Identity(), method="grad-cam")
    assert all(find_method(name) is method for name, method in METHODS.items())


@pytest.mark.parametrize(
    ("asked", "offered"),
    [("xgrad-cam", "xgradcam"), ("gradcampp", r"gradcam\+\+"), ("ablation_cam", "ablationcam")],
)
def test_close_names_are_those_of_all_methods(asked, offered):
    with pytest.raises(ValueError, match=f"is unknown; did you mean .*{offered}"):
        find_method(asked)


def test_a_slow_method_is_sent_on():
    for name in SLOW_METHODS:
        with pytest.raises(ValueError, match=f"{name}' takes one forward a channel.*slow_map"):
            CAM(torch.nn.Identity(), method=name)
