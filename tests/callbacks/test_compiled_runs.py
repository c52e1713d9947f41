"""A run under `torch.compile`: all images explained without leaving it, no graph made twice."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from strangers import NETWORKS, Stranger, make_trainer, read_lines

from litcam.callbacks import GradCAM

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Graphs(Callback):
    """A compiler that changes nothing, and how many graphs it had made and run by each epoch."""

    def __init__(self):
        self.made = self.run = 0
        self.by_epoch = []

    def compile(self, graph, inputs):
        self.made += 1

        def call(*args):
            self.run += 1
            return graph(*args)

        return call

    def on_validation_epoch_start(self, trainer, module):
        self.run = 0

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.by_epoch.append((self.made, self.run))


def whole(module, backend):
    return torch.compile(module, backend=backend)


def in_place(module, backend):
    module.net.compile(backend=backend)
    return module


def wrapped(module, backend):
    module.net = torch.compile(module.net, backend=backend)
    return module


def run(tmp_path, family, change, *callbacks):
    torch._dynamo.reset()
    pl.seed_everything(3, verbose=False)
    module, graphs = Stranger(NETWORKS[family]()), Graphs()
    module = change(module, graphs.compile) if change else module
    trainer = make_trainer(*callbacks, graphs, max_epochs=3, default_root_dir=tmp_path)
    trainer.fit(module)
    weights = [value.clone() for value in getattr(module, "_orig_mod", module).parameters()]
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return numbers, graphs.by_epoch, weights


@pytest.mark.parametrize("change", [whole, in_place, wrapped])
def test_every_image_is_explained_inside_and_nothing_is_compiled_again(tmp_path, change):
    expected, _, _ = run(tmp_path / "eager", "cnn", None, GradCAM(2))
    _, alone, plain = run(tmp_path / "alone", "cnn", change)
    numbers, graphs, weights = run(tmp_path / "compiled", "cnn", change, GradCAM(2))
    assert all(torch.equal(*pair) for pair in zip(weights, plain, strict=True))
    assert {"val/gradcam/sparseness", "val/gradcam/blank_maps", "val/loss"} <= set(numbers)
    assert numbers == pytest.approx(expected, abs=1e-5)
    # Two parts of each of the three batches.
    assert graphs[-1][1] >= 6
    assert graphs[2][0] - graphs[0][0] == alone[2][0] - alone[0][0] == 0
    maxima = [[at["map_max"] for at in read_lines(tmp_path / run)] for run in ("eager", "compiled")]
    assert maxima[0] == pytest.approx(maxima[1], abs=1e-5)


def test_where_few_are_shown_and_none_measured_nothing_is_compiled_for_them(tmp_path):
    _, alone, _ = run(tmp_path / "alone", "cnn", in_place)
    _, graphs, _ = run(tmp_path / "shown", "cnn", in_place, GradCAM(2, metrics=()))
    assert all(made <= at[0] for (made, _), at in zip(graphs, alone, strict=True))
