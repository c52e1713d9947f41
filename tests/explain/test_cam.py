"""What CAM leaves alone: the logits, the training step, and everything as it was before."""

import copy
import gc
import pickle
import weakref
from collections import Counter, OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from litcam.explain import CAM

SMALL = {
    "cnn": ("resnet10t", {}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    ),
}
LAYERS = {"cnn": "layer4", "vit": "blocks[-1].norm1", "swin": "norm"}
families = pytest.mark.parametrize("family", SMALL)
searched_and_given = pytest.mark.parametrize("search", [True, False])


def make(family, **options):
    torch.manual_seed(0)
    name, small = SMALL[family]
    return timm.create_model(name, num_classes=5, **small, **options).eval()


def images(batch=2):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def state(network):
    """All that must be as before."""
    return {
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "training": [module.training for module in network.modules()],
        "hooks": [
            len(hooks)
            for m in network.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        ],
        "forwards": ["forward" in vars(module) for module in network.modules()],
        "requires grad": [p.requires_grad for p in [*network.parameters(), *network.buffers()]],
        "grad": [id(p.grad) for p in network.parameters()],
        "values": [(id(v), v._version) for v in network.state_dict(keep_vars=True).values()],
        "rng": torch.get_rng_state().tolist(),
        "attributes": [sorted({*vars(m)} - {"forward"}) for m in network.modules()],
    }


@families
@searched_and_given
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_and_state_are_those_of_a_plain_forward(family, search, mode, precision):
    network, x = make(family), images()
    list(network.children())[-1].train()  # a mode that is not the same everywhere
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    with mode(), autocast:
        plain = network(x)
        before = state(network)
        with CAM(network, target_layer=None if search else LAYERS[family]) as cam:
            logits = network(x)
            inside = state(network)
        maps = cam([0, 1])
        after = state(network)
    assert torch.equal(plain, logits)
    assert logits.requires_grad == plain.requires_grad
    assert after == before
    inside["forwards"] = before["forwards"]  # what stands around them is taken away at the end
    assert inside == before
    assert not maps.requires_grad
    assert maps.isfinite().all()


@families
@searched_and_given
def test_every_module_runs_once(family, search):
    network, calls = make(family), Counter()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: calls.update([name]))
    with torch.no_grad():
        network(images())
        plain = Counter(calls)
        calls.clear()
        with CAM(network, target_layer=None if search else LAYERS[family]) as cam:
            network(images())
        cam.heatmaps([0, 1])
    assert calls == plain


def step(network, x, cam=None):
    torch.manual_seed(3)
    with cam or nullcontext():
        loss = nn.functional.cross_entropy(network(x), torch.tensor([0, 3]))
        if cam:
            cam([1, 2])
        loss.backward()
    return [p.grad for p in network.parameters()], list(network.buffers()), torch.get_rng_state()


@families
@searched_and_given
@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_step_is_bitwise_the_same(family, search, frozen):
    network = make(family, drop_rate=0.3, drop_path_rate=0.2).train()
    if frozen:
        for child in list(network.children())[:-1]:
            child.requires_grad_(False)
    plain = copy.deepcopy(network)
    cam = CAM(network, target_layer=None if search else LAYERS[family])
    for expected, got in zip(step(plain, images()), step(network, images(), cam), strict=True):
        for a, b in zip(expected, got, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


@families
@searched_and_given
def test_a_frozen_network_is_explained_alike(family, search):
    network, layer = make(family), None if search else LAYERS[family]
    maps = []
    for trainable in (True, False):
        network.requires_grad_(trainable)
        for mode in (torch.no_grad, nullcontext):
            with mode(), CAM(network, target_layer=layer) as cam:
                logits = network(images())
            assert logits.requires_grad == (trainable and mode is nullcontext)
            maps.append(cam([0, 1]))
    assert maps[0].any()
    assert all((m - maps[0]).abs().max() <= 1e-6 * maps[0].max() for m in maps)


@pytest.mark.parametrize("family", ["vit", "swin", "cnn"])
@searched_and_given
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_gradient_checkpointing(family, search, mode):
    network = make(family)
    # With checkpointing timm calls the blocks of a stage one by one, and not the stage.
    layer = None if search else LAYERS[family].replace("layer4", "layer4[-1]")
    maps = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        with mode(), CAM(network, target_layer=layer) as cam:
            network(images())
        maps.append(cam([0, 1]))
    assert (maps[0] - maps[1]).abs().max() <= 1e-6 * maps[0].max()


def test_a_checkpointed_body_is_explained_where_it_ends():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(30)])
            self.fc = nn.Linear(3, 5)

        def forward(self, x):
            return self.fc(checkpoint(self.body, x, use_reentrant=False).mean((2, 3)))

    network = Checkpointed()
    with CAM(network) as cam, torch.no_grad():
        network(images(3))
    with CAM(network, target_layer="body") as asked, torch.no_grad():
        network(images(3))
    assert cam.target_layer.name == "body"
    assert cam(0).shape == (3, 4, 4)
    assert torch.equal(cam(0), asked(0))


class Stop(nn.Module):
    """Raises `error` in its forward."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@searched_and_given
@pytest.mark.parametrize("place", ["layer1", "layer4", "layer4.0.act2", "fc"])
@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_state_after_an_exception(search, place, error, mode):
    network = make("cnn")
    network.set_submodule(place, Stop(error))
    with mode():
        before = state(network)
        with (
            pytest.raises(type(error)),
            CAM(network, target_layer=None if search else "layer4") as cam,
        ):
            network(images())
        assert state(network) == before
    with pytest.raises(RuntimeError, match="no forward was recorded"):
        cam([0, 1])


def test_an_exception_caught_inside_does_not_end_the_recording():
    network = make("cnn")
    with CAM(network) as cam, torch.no_grad():
        with pytest.raises(RuntimeError):
            network(torch.randn(2, 7, 64, 64))
        assert not torch.is_grad_enabled()
        network(images())
    assert cam([0, 1]).any()


@families
def test_the_network_can_be_copied_and_pickled_afterwards(family):
    network = make(family)
    with CAM(network) as cam, torch.no_grad():
        logits = network(images())
    cam()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(images()), logits)
        assert torch.equal(pickle.loads(pickle.dumps(network))(images()), logits)


def test_a_network_that_caches_gets_no_graph_into_its_cache():
    network = timm.create_model("levit_128s", num_classes=5).eval()  # caches attention biases
    with CAM(network) as cam, torch.no_grad():
        network(torch.randn(1, 3, 224, 224))
    assert cam.logits is not None
    copy.deepcopy(network)


def test_a_loop_over_batches_explains_the_latest():
    network = make("cnn")
    with CAM(network) as cam, torch.no_grad():
        for batch in (3, 1, 2):
            network(images(batch))
            assert cam(0).shape == (batch, 2, 2)
            network(images(batch))
    assert torch.equal(cam.images, images(2))
    with CAM(network) as again, torch.no_grad():
        network(images(2))
    assert torch.equal(cam(1), again(1))


def test_the_logits_may_be_changed_in_place():
    network = make("cnn")
    with CAM(network) as cam, torch.no_grad():
        logits = network(images())
    predicted, expected = logits.argmax(1), cam()
    logits.neg_()
    assert torch.equal(cam(), expected)
    assert torch.equal(cam(predicted), expected)


def test_two_networks_nested_and_images_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make("cnn")

        def forward(self, *, pixel_values, flag=None):
            return {"logits": self.net(pixel_values)}

    first, second = Keyword(), make("vit")
    with CAM(first) as a, CAM(second) as b, torch.no_grad():
        output = first(pixel_values=images(), flag=1)
        second(images())
    assert not output["logits"].requires_grad
    assert a.target_layer.name == "net.layer4"
    assert b([0, 1]).shape == (2, 4, 4)
    assert a([0, 1]).shape == (2, 2, 2)


# Classes and values that are out of the ordinary


def test_classes_that_do_not_exist():
    network = make("cnn")
    with CAM(network) as cam, torch.no_grad():
        network(images())
    for wrong in (5, -1):
        with pytest.raises(IndexError, match=f"class {wrong} does not exist: there are 0 to 4"):
            cam([0, wrong])
    with pytest.raises(ValueError, match="for 2 images"):
        cam([0, 1, 2])
    cam.release()
    with pytest.raises(RuntimeError, match="no forward was recorded"):
        cam()


def test_nan_logits_and_constant_maps_give_nothing():
    network = make("cnn")
    x = images()
    with CAM(network) as cam, torch.no_grad():
        network(x)
        x[0] = float("nan")
        network(x)
    heatmaps = cam.heatmaps([0, 1])
    assert not heatmaps[0].any()
    assert heatmaps[1].any()
    assert heatmaps.isfinite().all()
    nn.init.zeros_(network.fc.weight)
    with cam, torch.no_grad():
        network(images())
    assert not cam.heatmaps([0, 1]).any()
    with CAM(make("cnn")) as first, torch.no_grad():
        first.network(torch.full((2, 3, 64, 64), float("nan")))
    assert not first.heatmaps([0, 1]).any()


# Strangers' outputs and wrappers


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple = ()
    loss: None = None


class ModelOutput(OrderedDict):
    """As Hugging Face does it: keys that are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda y, h: Output(y, (h,)), lambda o: (o.logits, o.hidden[0])),
        (lambda y, h: {"logits": y, "hidden": h}, lambda o: (o["logits"], o["hidden"])),
        (lambda y, h: ModelOutput(logits=y, hidden=h), lambda o: (o.logits, o["hidden"])),
        (lambda y, h: (y, h), lambda o: o),
        (lambda y, h: [y, h], lambda o: o),
    ],
)
@searched_and_given
def test_output_objects(pack, unpack, search):
    class Stranger(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            hidden = self.conv(x)
            return pack(self.fc(hidden.mean((2, 3))), hidden)

    network = Stranger()
    with torch.no_grad():
        plain = network(images())
        with CAM(network, target_layer=None if search else "conv") as cam:
            output = network(images())
    assert type(output) is type(plain)
    for expected, got in zip(unpack(plain), unpack(output), strict=True):
        assert torch.equal(expected, got)
        assert not got.requires_grad
    assert cam([0, 1]).shape == (2, 62, 62)


# Memory


@searched_and_given
def test_nothing_is_left_over_after_many_rounds(search):
    network, graphs = make("cnn"), []
    before = state(network)["hooks"]
    for _ in range(30):
        with CAM(network, target_layer=None if search else "layer4") as cam, torch.no_grad():
            network(images(1))
        cam(0)
        graphs += [weakref.ref(cam.logits), weakref.ref(cam._recording.activations)]
        cam.release()
    gc.collect()
    assert not any(graph() is not None for graph in graphs)
    assert state(network)["hooks"] == before


@pytest.mark.parametrize("family", SMALL)
def test_a_survey_is_of_two_images_and_the_last_layers(family):
    """Which is what bounds its memory; `benchmarks/speed/cam.py memory` measures it."""
    network, seen = make(family), []
    body = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    forward = body.forward

    def watched(x):
        seen.append((len(x), torch.is_grad_enabled()))
        return forward(x)

    body.forward = watched
    with CAM(network) as cam, torch.no_grad():
        network(images(7))
        *survey, recorded = seen
        network(images(7))
    assert recorded == (7, False)
    assert set(survey) == {(2, False)}
    assert seen[len(survey) + 1 :] == [(7, False)]
    assert cam(0).shape[0] == 7


def test_tokens_are_held_against_the_image_once_and_not_by_every_cam():
    network, calls = make("vit"), []
    forward = network.patch_embed.forward
    network.patch_embed.forward = lambda x: calls.append(len(x)) or forward(x)
    for _ in range(3):
        with CAM(network, target_layer=LAYERS["vit"]) as cam, torch.no_grad():
            network(images(7))
        assert cam(0).any()
    assert calls.count(7) == 3 and calls[-2:] == [7, 7]


def test_a_tensor_changed_in_place_under_the_gradient_is_an_error_and_not_a_wrong_map():
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv(x).sigmoid()  # whose gradient needs its result
            pooled = x.mean((2, 3))
            x.zero_()
            return self.fc(pooled)

    network = Spoilt()
    for layer in (None, "conv"):
        with CAM(network, target_layer=layer) as cam, torch.no_grad():
            network(images())
        with pytest.raises(RuntimeError, match=r"in-?place operation"):
            cam([0, 1])


# What is explained


def test_a_target_is_any_number_an_image():
    """One logit, and a class of a segmentation at some place, against autograd."""

    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return {"out": self.head(self.body(x))}

    torch.manual_seed(0)
    network, x = Segments(), images()
    with CAM(network, target_layer="body", target=lambda o: o["out"][:, 2].mean((1, 2))) as cam:
        network(x)
    features = network.body(x).detach().requires_grad_()
    network.head(features)[:, 2].mean((1, 2)).sum().backward()
    weights = features.grad.mean((2, 3), keepdim=True)
    assert torch.allclose(cam(), (weights * features.detach()).sum(1).relu(), atol=1e-7)
    one = nn.Sequential(make("cnn"), nn.Linear(5, 1)).eval()
    with CAM(one, target=lambda logits: logits[:, 0]) as cam, torch.no_grad():
        one(x)
    assert cam().shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda logits: logits.sum(), r"one number an image, \(2,\), got \(\)"),
        (lambda logits: logits.argmax(1), "no gradient"),
        (lambda logits: "cat", "got str"),
    ],
)
def test_a_target_that_is_none(target, words):
    network = make("cnn")
    with CAM(network, target=target) as cam, torch.no_grad():
        network(images())
    with pytest.raises(RuntimeError, match=words):
        cam()
