"""Of a compiled tail what only one token needs is computed for that token, and nothing else."""

import pytest
import timm
import torch
import torch.nn.functional as F
from test_cam import SMALL, images
from torch import fx

from litcam.explain import CAM
from litcam.explain.forward.rows import keep_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, from tracing


@pytest.fixture(autouse=True)
def from_nothing():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Products(fx.Interpreter):
    """Runs a graph and notes the number of tokens in each of its products, 0 without that axis."""

    def __init__(self, graph):
        super().__init__(graph)
        self.tokens = []

    def call_function(self, target, args, kwargs):
        made = super().call_function(target, args, kwargs)
        if target is F.linear:
            self.tokens.append(made.shape[1] if made.ndim == 3 else 0)
        return made


@pytest.mark.parametrize(
    ("name", "options", "tail"),
    [
        # Queries, keys and values of all tokens; of one: projection, MLP and head.
        ("vit_tiny_patch16_224", {}, [17, 1, 1, 1, 0]),
        pytest.param(
            *("vit_tiny_patch16_224", {"reg_tokens": 4, "init_values": 0.1}, [21, 1, 1, 1, 0]),
            marks=pytest.mark.slow,
        ),
        # The token of distillation has all of it for itself.
        pytest.param(
            *("deit_tiny_distilled_patch16_224", {}, [18, 1, 1, 1, 1, 1, 1, 0, 0]),
            marks=pytest.mark.slow,
        ),
        # Explained at the last block: only the head is behind it, after the mean.
        pytest.param(
            *("vit_tiny_patch16_224", {"global_pool": "avg"}, [0]), marks=pytest.mark.slow
        ),
    ],
)
def test_behind_a_vits_last_attention(name, options, tail):
    torch.manual_seed(0)
    small = {**SMALL["vit"][1], **options}
    network = timm.create_model(name, num_classes=5, **small).eval()
    with torch.no_grad(), CAM(network) as cam:
        plain = network(images())
    graphs = []

    def keep_graph(graph, inputs):
        graphs.append(Products(graph))
        return graphs[-1].run

    layer = cam.target_layer
    with torch.no_grad(), CAM(network, target_layer=layer, backend=keep_graph) as compiled:
        assert torch.allclose(network(images()), plain, atol=1e-6)
    assert not compiled.failure
    assert graphs[-1].tokens == tail
    for method in ("gradcam", "hirescam", "gradcam++"):
        expected, maps = (each([[0, 1], [2, 3]], method=method) for each in (cam, compiled))
        assert expected.amax() > 0
        assert (maps - expected).abs().amax() <= 1e-5 * expected.amax()


def mlp(tokens, weight):
    return F.linear(F.gelu(F.layer_norm(tokens, (6,))), weight)


def first(tokens, weight):
    return (tokens + mlp(tokens, weight))[:, 0]


def last(tokens, weight):
    return (mlp(tokens, weight) * weight[0])[:, -1, :]


def read_elsewhere(tokens, weight):
    tokens = mlp(tokens, weight)
    return tokens[:, 0] + tokens.mean(1)


def changed_after(tokens, weight):
    values = mlp(tokens, weight)
    answer = (values + 1)[:, 0]
    values.mul_(0)
    return answer


def changed_between(tokens, weight):
    tokens = tokens * 1
    values = F.linear(tokens + 1, weight)
    tokens.add_(1)
    return (values + tokens)[:, 0]


def changed_through_a_view(tokens, weight):
    same = F.dropout(mlp(tokens, weight), 0.5, False)
    same[:, 0].add_(1)
    return mlp(same, weight)[:, -6]


def read_without_graph(tokens, weight):
    values = mlp(tokens, weight)
    with torch.no_grad():
        row = values[:, 0]
    return row + values[:, 1]


def each_of_its_own_size(tokens, weight):
    return mlp(tokens + weight, weight)[:, 0]


def one_for_all_tokens(tokens, weight):
    return (mlp(tokens, weight) + mlp(tokens, weight)[:, :1])[:, 2]


def normed_over_tokens(tokens, weight):
    return F.layer_norm(mlp(tokens, weight), tokens.shape[1:])[:, 0]


def drawn(tokens, weight):
    return F.dropout(mlp(tokens, weight), 0.5, True)[:, 0]


@pytest.mark.parametrize(
    ("steps", "whole"),
    [
        (first, 0),
        (last, 0),
        (read_elsewhere, 1),
        (changed_after, 1),
        (changed_between, 0),
        (changed_through_a_view, 0),
        (read_without_graph, 0),
        (each_of_its_own_size, 0),
        (one_for_all_tokens, 2),
        (normed_over_tokens, 1),
        (drawn, 1),
    ],
)
def test_what_else_reads_or_changes_the_tokens(steps, whole):
    """As many tokens as images and channels, so that only the number of axes tells them apart."""
    generator = torch.Generator().manual_seed(0)
    tokens, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((6, 6, 6), (6, 6))
    )
    graphs = []

    def cut(graph, inputs):
        graphs.append(Products(keep_rows(graph)))
        return graphs[-1].run

    answers = []
    for run in (steps, torch.compile(steps, backend=cut, fullgraph=True)):
        torch.manual_seed(0)
        answer = run(tokens, weight)
        gradients = torch.autograd.grad((answer**2).sum(), (tokens, weight))
        answers.append((answer, *gradients))
    for expected, made in zip(*answers, strict=True):
        assert torch.allclose(made, expected, rtol=1e-12, atol=1e-12)
    assert [graph.tokens.count(6) for graph in graphs] == [whole]


@pytest.mark.slow
def test_a_strangers_hook_behind_the_layer_sees_all_tokens():
    torch.manual_seed(0)
    network = timm.create_model(SMALL["vit"][0], num_classes=5, **SMALL["vit"][1]).eval()
    with torch.no_grad(), CAM(network) as cam:
        network(images())
    seen = []
    network.norm.register_forward_hook(lambda module, args, output: seen.append(output.mean(1)))
    layer = cam.target_layer
    with torch.no_grad(), CAM(network, target_layer=layer, backend="eager") as compiled:
        network(images())
    assert torch.allclose(compiled([0, 1]), cam([0, 1]), atol=1e-6)
    with torch.no_grad():
        expected = network.norm(network.blocks(network._pos_embed(network.patch_embed(images()))))
    assert torch.allclose(seen[0], expected.mean(1), atol=1e-5)
