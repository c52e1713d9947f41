"""Maps out of a compiled network: the parts before and behind the layer are compiled apart."""

import pytest
import timm
import torch
from test_cam import images, make
from torch import nn
from torch._dynamo.utils import counters

from litcam.explain import CAM
from litcam.explain.forward.compiled import find_backend
from litcam.explain.networks import unwrap

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, from tracing
CLASSES = [[0, 1], [2, 3]]


@pytest.fixture(autouse=True)
def from_nothing():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


class Counting:
    """A compiler that changes nothing and counts the graphs it was given and the calls of them."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph(*args)

        return run


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.slow
def test_by_default_compiled_networks_run_uncompiled(backend, in_place):
    network = small()
    with CAM(network) as cam, torch.no_grad():
        plain = network(images())
    expected = cam([0, 1])
    if in_place:
        network.compile(backend=backend)
        compiled = network
    else:
        compiled = torch.compile(network, backend=backend)
        assert unwrap(compiled) is network
    for layer in (None, "0"):
        with torch.no_grad():
            compiled(images())  # compiled before the hooks are put on
            with CAM(compiled, target_layer=layer) as cam:
                assert torch.equal(compiled(images()), plain)
            assert cam.target_layer.name == "0"
            assert torch.equal(cam([0, 1]), expected)
            assert torch.allclose(compiled(images()), plain)


@pytest.mark.parametrize(
    ("family", "context"),
    [
        ("cnn", torch.no_grad),
        ("vit", torch.inference_mode),
        pytest.param("swin", torch.no_grad, marks=pytest.mark.slow),
        ("cnn", torch.enable_grad),
    ],
)
def test_a_backend_compiles_both_parts_and_the_maps_stay(family, context):
    network, backend = make(family), Counting()
    with CAM(network) as cam, context():
        plain = network(images())
    expected = cam(CLASSES)
    compiled = torch.compile(network, backend=backend)
    with context():
        compiled(images())
        theirs = backend.graphs
        with CAM(compiled, backend=backend) as cam:
            logits = compiled(images())
            made = backend.graphs
            assert made >= theirs + 2  # before the layer and from it
            assert torch.allclose(logits, plain, atol=1e-6)
            assert torch.allclose(cam(CLASSES), expected, atol=1e-6)
            assert logits.requires_grad == (context is torch.enable_grad)
        called = backend.calls
        # Another one does not compile again, and the network's own graph is the one it was.
        for _ in range(3):
            with CAM(compiled, target_layer=cam.target_layer, backend=backend) as again:
                compiled(images())
                assert torch.allclose(again(CLASSES), expected, atol=1e-6)
        assert backend.calls >= called + 3 * 2
        settled = backend.graphs
        compiled(images())
        with CAM(compiled, target_layer=cam.target_layer, backend=backend):
            compiled(images())
        assert backend.graphs == settled <= made + 1


def test_two_layers_of_blocks_that_share_their_code():
    network, backend = make("vit"), Counting()
    compiled = torch.compile(network, backend=backend)
    for layer in ("blocks[0].norm1", "blocks[1].norm1", "blocks[0].norm1"):
        with torch.no_grad(), CAM(network, target_layer=layer) as cam:
            network(images())
        expected = cam([1, 2])
        with torch.no_grad(), CAM(compiled, target_layer=layer, backend=backend) as cam:
            compiled(images())
        assert torch.allclose(cam([1, 2]), expected, atol=1e-6), layer


def test_what_cannot_be_compiled_is_explained_uncompiled():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    network = small()
    with CAM(network) as cam, torch.no_grad():
        plain = network(images())
    expected = cam([0, 1])
    with CAM(network, backend=broken) as cam, torch.no_grad():
        for _ in range(2):
            assert torch.equal(network(images()), plain)
            assert not cam.failure
            assert torch.equal(cam([0, 1]), expected)


def test_a_layer_inside_a_part_that_is_compiled_by_itself():
    """The part's own graph goes past the hook; then the whole runs uncompiled."""
    network = make("vit")
    with torch.no_grad(), CAM(network) as cam:
        network(images())
    expected = cam([0, 1])
    for block in network.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        network(images())
        with CAM(network, target_layer=cam.target_layer, backend="eager") as cam:
            network(images())
    assert torch.allclose(cam([0, 1]), expected, atol=1e-6)


def test_the_backend_of_whatever_is_compiled_around_the_network():
    backend, network = Counting(), small()
    assert find_backend(network, network) is None
    inside = nn.ModuleDict({"net": torch.compile(network, backend=backend)})
    assert find_backend(inside, network).compiler_fn is backend
    network = small()
    network.compile(backend=backend)
    assert find_backend(nn.ModuleDict({"net": network}), network).compiler_fn is backend
    # One that has only a compiled part is not compiled.
    assert find_backend(nn.Sequential(network), nn.Sequential(network)) is None
    chosen = find_backend(inside, inside["net"]._orig_mod)
    reduced = torch.compile(small(), mode="reduce-overhead")
    assert chosen != find_backend(reduced, unwrap(reduced))


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_inductor_gives_the_same_maps(name, precision):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10).eval()
    photos = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    mixed = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    with torch.no_grad(), mixed, CAM(network) as cam:
        network(photos)
    expected = cam([1, 2, 3, 4])
    compiled = torch.compile(network)
    with torch.no_grad(), mixed:
        theirs = compiled(photos)
        backend = find_backend(compiled, network)
        with CAM(compiled, target_layer=cam.target_layer, backend=backend) as cam:
            logits = compiled(photos)
    assert cam._recording._backend is backend
    limit = 1e-3 if precision is torch.float32 else 2e-2
    assert (cam([1, 2, 3, 4]) - expected).abs().max() <= limit * expected.abs().max()
    assert torch.allclose(logits, theirs, atol=limit)


def test_two_that_end_in_the_order_they_began_leave_the_compiler_on():
    networks, batch = [make("cnn").eval() for _ in range(2)], images()
    first, second = (CAM(network) for network in networks)
    first.__enter__()
    second.__enter__()
    for network in networks:
        network(batch)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    calls = []

    def count(graph, inputs):
        calls.append(graph)
        return graph.forward

    torch.compile(networks[0], backend=count)(batch)
    assert calls
