"""Every set-up of `setups.py`: what appears is right, by a computation of its own, or refused."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image
from setups import SETUPS
from strangers import Stranger, count_hooks, make_trainer, read_lines

from litcam.callbacks import GradCAM


def fit(row, folder, *callbacks):
    """One epoch; the module as it is then, and what its own validation logged."""
    torch.manual_seed(3)
    module = row.make()
    options = {"max_epochs": 1, "default_root_dir": folder, **row.trainer}
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(module)
    assert trainer.state.finished and trainer.current_epoch == 1
    logged = {k: v for k, v in trainer.callback_metrics.items() if "/gradcam/" not in k}
    return module, logged, trainer


def list_state(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_untouched(row, folder, module, logged):
    """As after a fit without the callback: weights and buffers to the bit."""
    plain, alone, _ = fit(row, folder)
    expected, state = list_state(plain), list_state(module)
    assert expected.keys() == state.keys() and count_hooks(plain) == count_hooks(module)
    for name, value in expected.items():
        assert torch.equal(value, state[name]), name
        assert value.requires_grad == state[name].requires_grad, name
    # To rounding, because of the fast path of PyTorch's attention.
    torch.testing.assert_close(alone, logged, rtol=1e-5, atol=1e-6, equal_nan=True)


class ByHand:
    """Grad-CAM in plain autograd, of every validation image, without litcam.

    The fit ended with the validation that was recorded: the weights are those of then.

    Attributes:
        scores: `(num_classes,)` by loader and place.
        maps: by loader, place and class, before the ReLU.
    """

    def __init__(self, row, module, trainer, grids):
        self.row, self.module, self.grids = row, module.eval(), grids
        self.scores, self.maps = {}, {}
        self._features, self._outputs = [], []
        hooks = [
            module.get_submodule(row.layer).register_forward_hook(self._at_layer),
            module.get_submodule(row.network).register_forward_hook(self._at_end),
        ]
        loaders = module.val_dataloader()
        loaders = list(loaders.values()) if isinstance(loaders, dict) else loaders
        for number, loader in enumerate(loaders if isinstance(loaders, list) else [loaders]):
            place = 0
            for batch in loader:
                place = self._explain(trainer.precision_plugin.convert_input(batch), number, place)
        for hook in hooks:
            hook.remove()

    def _at_layer(self, part, args, output):
        torch.set_grad_enabled(True)  # also where the network runs this part of itself without
        self._features.append(output.detach().requires_grad_())
        return self._features[-1].clone()  # the ReLU after it may work in place

    def _at_end(self, part, args, output):
        self._outputs.append(output)

    def _explain(self, batch, number, place):
        row = self.row
        self._features.clear(), self._outputs.clear()
        row.step(self.module, batch)
        leaf, scores = self._features[row.call], row.scores(self._outputs[row.call])
        scores = scores[:, None] if scores.ndim == 1 else scores
        slopes = [
            torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0]
            for column in scores.unbind(1)
        ]
        for image, score in enumerate(scores.detach(), place):
            self.scores[number, image] = score
            for kind, slope in enumerate(slopes if (number, image) in self.grids else []):
                one = slice(image - place, image - place + 1)
                grid = self.grids[number, image]
                values, slope = (row.fold(t.detach()[one], grid)[0] for t in (leaf, slope))
                weights = slope.mean((1, 2), keepdim=True)
                self.maps[number, image, kind] = (values * weights).sum(0)
        return place + len(scores)


def loader_of(line):
    return int(line["key"].partition("dataloader_idx_")[2] or 0)


def assert_maps(row, module, trainer, lines):
    """The recorded maps, their maxima and the predicted classes, against `ByHand`."""
    places = [(loader_of(line), line["index"]) for line in lines]
    grids = {place: line["grid"] for place, line in zip(places, lines, strict=True)}
    hand = ByHand(row, module, trainer, grids)
    for place, line in zip(places, lines, strict=True):
        assert line["predicted"] == hand.scores[place].argmax()
        raw = hand.maps[*place, line["class"]]
        expected, noise = raw.relu(), float(raw.abs().max()) * 1e-5
        assert line["map_max"] == pytest.approx(float(expected.max()), rel=1e-3, abs=noise)
        if float(expected.max()) <= noise:
            continue
        levels = np.frombuffer(base64.b64decode(line["map"]), np.uint8).reshape(line["grid"])
        exact = 255 * (expected / expected.max()).numpy()
        # Written in 256 levels of its maximum.
        assert np.abs(exact - levels).max() <= 0.5 + 255 * 2e-3


def assert_photo(row, folder, line):
    """The picture's left half is the image, by what is bright where."""
    picture = Image.open(folder / "gradcam" / line["file"])
    image = row.photo(line["index"])
    height, width = image.shape[1:]
    left = picture.crop((0, 0, picture.height * width // height, picture.height))
    seen = np.asarray(left.resize((width, height), Image.Resampling.BOX), float).mean(2)
    likeness = np.corrcoef(seen.flat, image.mean(0).numpy().flat)[0, 1]
    assert likeness > 0.8, (line["file"], likeness)


def assert_right(row, folder, lines, warned):
    views = {}
    for line in lines:
        views.setdefault(line["key"].removeprefix("val/gradcam/"), []).append(line["index"])
    assert {view: tuple(shown) for view, shown in views.items()} == dict(row.views)
    assert {line["layer"] for line in lines} == {row.layer, *row.others}
    for line in lines:
        view = line["key"].split("/")[2]
        assert line["label"] == row.label(line["index"])
        wanted = {"predicted": line["predicted"], "true": line["label"], "target": 0}
        assert line["class"] == wanted[view]
    # Hardly trained, some maps are zero, but not most of them.
    assert sum(line["map_max"] > 0 for line in lines) >= len(lines) / 2
    said = [line for line in warned if "map is flat" not in line]
    assert len(said) == bool(row.said), said
    assert row.said in "".join(said)
    for line in (lines[0], lines[2]):
        assert_photo(row, folder, line)


def mark(row):
    fault = pytest.mark.xfail(strict=True, reason=row.wrong, raises=AssertionError)
    return [fault] if row.wrong else []


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=row.name,
            marks=mark(row),
        )
        for row in SETUPS
    ],
)
def test_what_a_stranger_brings_is_explained_or_refused(row, warned, caplog, tmp_path):
    folder = tmp_path / "with"
    module, logged, trainer = fit(row, folder, row.cam())
    lines = read_lines(folder / "gradcam")
    assert_untouched(row, tmp_path / "without", module, logged)
    if row.refused:
        assert not lines
        assert len(warned) == 1, warned
        line = warned[0]
        assert all(words in line for words in row.refused.split(" … ")), line
        return
    assert_right(row, folder, lines, warned)
    assert any(row.told in text for text in caplog.messages if "GradCAM explains" in text)
    if row.by_hand:
        assert_maps(row, module, trainer, lines)


def test_a_map_is_called_flat_for_itself_alone(tmp_path):
    """The report leaves out what has a problem, and a caption says it."""
    module = Stranger()
    with torch.no_grad():
        module.net[-1].weight[0], module.net[-1].bias[0] = 0, -9
    make_trainer(GradCAM(classes=[0, 1])).validate(module, verbose=False)
    lines = read_lines(tmp_path / "gradcam")
    assert {line["problem"] for line in lines if line["class"] == 0} == {"map is flat"}
    assert not any(line["problem"] for line in lines if line["map_max"] > 0)
