"""Images that are told by the answers: the surest mistakes, and what changed."""

import pytest
import torch
from strangers import Pictures, Stranger, make_images, make_trainer, read_lines
from torch import nn
from torch.utils.data import DataLoader

from litcam.callbacks import GradCAM


class Planned(nn.Module):
    """Answers by plan: the class and how sure, for each image of each validation."""

    def __init__(self, plan, num_images):
        super().__init__()
        self.net, self.plan, self.num_images, self.seen = Stranger().net, plan, num_images, 0

    def forward(self, images):
        logits = self.net(images)
        if self.training:
            return logits
        out = []
        for row in logits:
            epoch, place = divmod(self.seen, self.num_images)
            number, sure = self.plan[epoch][place]
            out.append(row * 0 + torch.nn.functional.one_hot(torch.tensor(number), 3) * sure)
            self.seen += 1
        return torch.stack(out) + logits * 1e-3


def fit(plan, folder, **kwargs):
    num = len(plan[0])
    module = Stranger(Planned(plan, num), num_images=num, batch_size=3)
    trainer = make_trainer(
        GradCAM(**kwargs),
        max_epochs=len(plan),
        default_root_dir=folder,
        num_sanity_val_steps=0,
    )
    trainer.fit(module)
    return [line for line in read_lines(folder / "gradcam") if line["key"].endswith("predicted")]


# Labels are 0 1 2 0 1 2 0 1.
FIRST = [(0, 5), (0, 3), (0, 9), (1, 5), (1, 1), (0, 7), (0, 2), (2, 1)]
SECOND = [(0, 5), (1, 3), (0, 9), (2, 6), (1, 1), (2, 7), (1, 2), (2, 1)]


def test_the_surest_mistakes_of_each_validation(tmp_path, warned):
    lines = fit([FIRST, SECOND], tmp_path, show="wrong", num_images=3)
    shown = [[line["index"] for line in lines if line["epoch"] == epoch] for epoch in (0, 1)]
    assert shown == [[2, 5, 3], [2, 3, 6]]
    assert all(line["correct"] is False for line in lines)
    names = [line["file"].rpartition("-")[2] for line in lines[:3]]
    assert names == ["000000.jpg", "000001.jpg", "000002.jpg"]


def test_the_surest_answers_that_changed(tmp_path, warned):
    lines = fit([FIRST, SECOND], tmp_path, show="changed", num_images=3)
    assert [(line["epoch"], line["index"]) for line in lines] == [(1, 5), (1, 3), (1, 1)]
    assert not [line for line in warned if "flat" not in line]


def test_without_labels_nothing_is_wrong(tmp_path, warned):
    module, (images, _) = Stranger(), make_images(8)
    module.val_dataloader = lambda: DataLoader(list(images), 4)
    module.validation_step = lambda batch, batch_idx: module.net(batch).mean()
    trainer = make_trainer(GradCAM(show="wrong"), default_root_dir=tmp_path)
    trainer.validate(module, verbose=False)
    assert not read_lines(tmp_path / "gradcam")
    assert any("shows no wrong images: the batch has no labels" in line for line in warned)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"show": "worst"}, "fixed, wrong, changed"), ({"show": "wrong", "indices": [1]}, "pass one")],
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        GradCAM(**arguments)


def test_indices_of_a_smaller_second_loader(tmp_path, warned):
    """Each loader shows those that it has."""
    module = Stranger()
    small = DataLoader(Pictures(5), 4)
    module.val_dataloader = lambda: [DataLoader(Pictures(12), 4), small]
    trainer = make_trainer(GradCAM(indices=[1, 9]), default_root_dir=tmp_path, max_epochs=1)
    trainer.fit(module)
    lines = [x for x in read_lines(tmp_path / "gradcam") if "predicted" in x["key"]]
    assert [(x["key"][-1], x["index"]) for x in lines] == [("0", 1), ("0", 9), ("1", 1)]
    assert not [line for line in warned if "flat" not in line]
