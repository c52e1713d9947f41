"""What strangers' networks do in a forward: none of it ends a run, and none of it is spoilt."""

import copy
import gc
import resource
from pathlib import Path

import pytest
import torch
from strangers import NETWORKS, SmallCNN, Stranger, make_trainer, read_lines
from torch import nn

from litcam.callbacks import GradCAM
from litcam.explain import CAM, find_target_layer


class Out(nn.Module):
    """Multiplies into a tensor of its own, which autograd refuses."""

    def __init__(self):
        super().__init__()
        self.body, self.weight = SmallCNN()[:8], nn.Parameter(torch.randn(12, 3))

    def forward(self, images):
        features = self.body(images)
        if self.training:
            return features @ self.weight
        return torch.mm(features, self.weight, out=torch.empty(len(features), 3))


class Asserts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("no backward here")


class NoBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = SmallCNN()[:8], nn.Linear(12, 3)

    def forward(self, images):
        features = self.body(images)
        return self.head(features * 2 if self.training else Asserts.apply(features))


class Numpy(nn.Module):
    """Looks at its features as NumPy, in its own forward."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = SmallCNN(), []

    def forward(self, images):
        features = self.net[:8](images)
        if not self.training:
            self.seen.append(features.cpu().numpy())
        return self.net[8:](features)


@pytest.mark.parametrize("how", ["fit", "validate"])
@pytest.mark.parametrize("make", [Out, NoBackward, Numpy])
def test_what_cannot_be_recorded_runs_plainly_and_is_said(make, how, warned, tmp_path):
    module = Stranger(make())
    trainer = make_trainer(GradCAM(), max_epochs=3)
    getattr(trainer, how)(module)
    assert trainer.state.finished
    (line,) = warned
    assert "cannot" in line or "no layer" in line, line
    assert not read_lines(tmp_path / "gradcam")


@pytest.mark.parametrize("family", NETWORKS)
def test_hooks_of_others_see_plain_tensors(family, warned, tmp_path):
    """A user's hook after the layer may call `numpy()`, and collect features."""
    module, kept = Stranger(NETWORKS[family]()), []

    def hook(part, args, output):
        if isinstance(output, torch.Tensor) and not part.training:
            output.cpu().numpy()
            kept.append(output)

    for part in module.net.modules():
        part.register_forward_hook(hook)
    make_trainer(GradCAM(), max_epochs=1).fit(module)
    assert not any(tensor.requires_grad for tensor in kept)
    assert len(read_lines(tmp_path / "gradcam")) == 16
    assert all("flat" in line for line in warned)


def test_a_hook_that_changes_what_it_sees_is_explained_with_its_change():
    torch.manual_seed(0)
    network, images = SmallCNN().eval(), torch.randn(2, 3, 32, 32)
    with CAM(network, target_layer="3") as cam, torch.no_grad():
        network(images)
    plain = cam(0)
    network[4].register_forward_hook(lambda module, args, output: output * 3)
    with CAM(network, target_layer="3") as cam, torch.no_grad():
        logits = network(images)
    with torch.no_grad():
        assert torch.equal(logits, network(images))
    assert torch.allclose(cam(0), 3 * plain, rtol=1e-4, atol=1e-7)


class Keeps(nn.Module):
    """Keeps features: in a buffer in place, in attributes, in a table made once."""

    def __init__(self):
        super().__init__()
        self.net, self.table, self.lists = SmallCNN(), None, {"all": []}
        self.register_buffer("mean", torch.zeros(12), persistent=False)

    def forward(self, images):
        if self.table is None:
            self.table = torch.linspace(0, 1, 12)
        features = self.net[:8](images)
        if not self.training:
            self.mean.mul_(0.9).add_(features.mean(0), alpha=0.1)
            self.last, self.lists["all"] = features, [features]
        return self.net[8:](features * (1 + self.table) + 0.01 * self.mean)


def count_nodes(tensor):
    todo, seen = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [next_node for next_node, _ in node.next_functions]
    return len(seen)


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("num", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_network_that_keeps_features_keeps_no_graph(num, tmp_path):
    module = Stranger(Keeps())
    buffer = module.net.mean
    objects, memory = [], []
    trainer = make_trainer(GradCAM(), max_epochs=1)
    trainer.fit(module)
    for _ in range(num):
        trainer.validate(module, verbose=False)
        gc.collect()
        memory.append(resident())
        objects.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        assert module.net.mean is buffer
        kept = (buffer, module.net.last, module.net.table, *module.net.lists["all"])
        assert not any(tensor.requires_grad for tensor in kept)
        assert sum(map(count_nodes, kept)) == 0
    assert objects[-1] <= objects[num // 4]
    if num > 50:  # what the allocator keeps for later has settled by then
        assert memory[-1] - memory[num // 4] < 2**21
    copy.deepcopy(module.net)


def test_a_network_that_keeps_features_validates_as_without(tmp_path):
    seen = []
    for callbacks in ((), (GradCAM(),)):
        torch.manual_seed(0)
        module = Stranger(Keeps())
        trainer = make_trainer(*callbacks, max_epochs=2)
        trainer.fit(module)
        seen.append((trainer.callback_metrics["val/loss"], module.net.mean.clone()))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_the_survey_is_not_noticed():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls, self.sizes = SmallCNN(), 0, []

        def forward(self, images):
            self.calls += 1
            self.sizes.append(len(images))
            return self.net(images)

    network, hooked = Counts().train(), []
    network.net[0].register_forward_pre_hook(lambda *_: hooked.append(1))
    other = copy.deepcopy(network)
    images = torch.randn(6, 3, 32, 32)
    torch.manual_seed(5)
    expected = other(images)
    numbers = torch.get_rng_state()
    torch.manual_seed(5)
    hooked.clear()
    with CAM(network) as cam:
        logits = network(images)
    assert torch.equal(logits, expected)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert (network.calls, network.sizes, len(hooked)) == (1, [6], 1)
    assert cam(0).shape == (6, 8, 8)
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, network.get_buffer(name)), name


# Which of several


class Flips(Stranger):
    def __init__(self, first):
        super().__init__()
        self.first = first

    def classify(self, batch):
        views = [batch[0], batch[0].flip(3)]
        logits = [self.net(view) for view in (views[::-1] if self.first else views)]
        return sum(logits) / 2, batch[1]


@pytest.mark.parametrize("first", [False, True])
def test_of_several_forwards_that_of_the_batch_is_explained(first, tmp_path):
    maps, plain = [], Stranger()
    for module in (plain, Flips(first)):
        module.load_state_dict(plain.state_dict())
        folder = tmp_path / str(len(maps))
        cams = GradCAM(), GradCAM(name="second")
        make_trainer(*cams, default_root_dir=folder).validate(module, verbose=False)
        for name in ("gradcam", "second"):
            maps.append([line["map"] for line in read_lines(folder / name)])
    assert maps[0] == maps[1] == maps[2] == maps[3]


# Where tokens come from


class Tokens(nn.Module):
    """A transformer with its class token last, learned queries, or channels first."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.extra = nn.Parameter(torch.randn(1, 64 if kind == "queries" else 1, 16))
        self.reads = nn.MultiheadAttention(16, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        extra = self.extra.expand(len(images), -1, -1)
        if self.kind == "queries":
            tokens = self.reads(extra, tokens, tokens)[0] + extra
        if self.kind == "last":
            tokens = torch.cat([tokens, extra], 1)
        return self.head(self.norm(self.encoder(tokens)).mean(1))


def test_a_class_token_may_stand_at_the_end():
    torch.manual_seed(0)
    found = find_target_layer(Tokens("last"), torch.randn(2, 3, 32, 32))
    assert (found.layout.num_prefix_tokens, found.layout.num_suffix_tokens) == (0, 1)
    assert found.grid == (8, 8)


@pytest.mark.parametrize("layer", [None, "norm"])
def test_learned_queries_are_no_grid(layer):
    torch.manual_seed(0)
    network, images = Tokens("queries").eval(), torch.randn(2, 3, 32, 32)
    with CAM(network, target_layer=layer) as cam, torch.no_grad():
        network(images)
    if layer is None and not cam.failure:
        assert cam.target_layer.name == "patches"  # the last that are patches
        return
    assert "not the patches of the image" in cam.failure
