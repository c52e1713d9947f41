"""What public Lightning projects brought that was wrong in silence, refused or not told."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from strangers import Pictures, SmallCNN, Stranger, make_images, make_trainer, read_lines
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset, random_split
from torchvision import transforms

from litcam.callbacks import GradCAM


def validate(module, folder, cam=None, **kwargs):
    trainer = make_trainer(cam or GradCAM(), default_root_dir=folder)
    trainer.validate(module, verbose=False, **kwargs)
    return read_lines(folder / "gradcam")


class Loads(Stranger):
    """Validates what it is given."""

    def __init__(self, net, *data, batch_size=4):
        super().__init__(net)
        self.data, self.batch_size = data, batch_size

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.net(batch[0])

    def val_dataloader(self):
        loaders = [DataLoader(data, self.batch_size) for data in self.data]
        return loaders if len(loaders) > 1 else loaders[0]


@pytest.mark.parametrize("other", [0.0, -1.0, torch.nan, 0.1], ids=["0", "-1", "nan", "smoothed"])
def test_several_classes_have_sigmoids_whatever_is_unknown(other, tmp_path):
    """As in chest X-rays (CovidPrognosis): NaN or -1 is a finding that nobody looked for."""
    rows = torch.tensor([[1, 1, other], [1, 0, 0]]).repeat(4, 1)
    module = Loads(SmallCNN(), TensorDataset(make_images(8)[0], rows), batch_size=2)
    lines = validate(module, tmp_path)
    logits = module.net.eval()(make_images(8)[0]).detach()
    for line in lines:
        expected = float(logits[line["index"], line["class"]].sigmoid())
        assert line["probability"] == pytest.approx(expected, abs=1e-5)


def test_what_a_later_batch_tells_holds_for_earlier_ones(tmp_path):
    """Batches of one image: that images have several classes is seen in the fifth alone."""
    rows = torch.eye(3)[[0, 1, 2, 0, 1, 1, 2, 0]]
    rows[4] = 1
    module = Loads(SmallCNN(), TensorDataset(make_images(8)[0], rows), batch_size=1)
    lines = validate(module, tmp_path)
    logits = module.net.eval()(make_images(8)[0]).detach()
    for line in lines:
        expected = float(logits[line["index"], line["class"]].sigmoid())
        assert line["probability"] == pytest.approx(expected, abs=1e-5)


def test_two_sure_answers_are_told_apart_by_their_scores(tmp_path):
    """CovidPrognosis: where two sigmoids round to 1, the caption named another class."""
    module = Loads(SmallCNN(), TensorDataset(make_images(8)[0], torch.ones(8, 3)))
    nn.init.zeros_(module.net[-1].weight)
    module.net[-1].weight.data += torch.randn(3, 12) * 1e-3
    module.net[-1].bias.data = torch.tensor([90.0, 10.0, 95.0])
    for line in validate(module, tmp_path, GradCAM(classes=["predicted"])):
        assert line["predicted"] == line["class"] == 2


class Satellite(pl.LightningDataModule):
    """As torchgeo's: mean and std as a sensor counts."""

    def __init__(self, images, mean, std):
        super().__init__()
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.images = transforms.Normalize(mean, std)(images)

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.images, torch.arange(8) % 3), 4)


@pytest.mark.parametrize("units", [255.0, 4000.0], ids=["bytes", "reflectance"])
@pytest.mark.parametrize("centred", [True, False])
def test_other_units_than_pixels_are_no_white_pictures(units, centred, tmp_path, caplog):
    images = make_images(8)[0].mul(0.2).add(0.5).clamp(0, 1)
    mean, std = ((0.5 * units if centred else 0.5),) * 3, (0.2 * units,) * 3
    data = Satellite(images * units, mean, std)
    line = validate(Loads(SmallCNN()), tmp_path, datamodule=data)[0]
    photo = np.asarray(Image.open(tmp_path / "gradcam" / line["file"]))[:, :224]
    assert (photo > 250).mean() < 0.5 and photo.std() > 20
    assert ("min-max" in caplog.text) == (units > 255)


def test_pixels_are_what_the_user_says(tmp_path, caplog):
    """Blue before red, as OpenCV reads photos (AdaFace)."""
    images = torch.zeros(8, 3, 32, 32)
    images[:, 0] = 1  # blue
    cam = GradCAM(pixels=lambda images: images.flip(1))
    lines = validate(Loads(SmallCNN(), TensorDataset(images, torch.arange(8) % 3)), tmp_path, cam)
    photo = np.asarray(Image.open(tmp_path / "gradcam" / lines[0]["file"]))[5:200, 5:200]
    assert photo[..., 2].mean() > 200 > 60 > photo[..., 0].mean()
    assert "pixels by the given function" in caplog.text


def test_pixels_of_another_shape_are_one_line(tmp_path, warned):
    cam = GradCAM(pixels=lambda images: images[:, :2])
    validate(Loads(SmallCNN(), Pictures()), tmp_path, cam)
    assert "pixels must give (3, 3, h, w), got (3, 2, 32, 32)" in warned[0]


def test_names_and_normalisation_behind_several_sets_in_one(tmp_path, caplog):
    """lightning-hydra-template: random_split(ConcatDataset([...]))."""

    class Named(Pictures):
        transform = transforms.Normalize([0.4] * 3, [0.2] * 3)

    data = random_split(ConcatDataset([Named(8), Named(8)]), [8, 8])[0]
    lines = validate(Loads(SmallCNN(), data), tmp_path)
    assert {line["class_name"] for line in lines} <= {"ant", "bee", "cat"}
    assert "the dataset's Normalize" in caplog.text


class Bank(Stranger):
    """lightly: one loader's images are embedded, for neighbours; the other's are classified."""

    def __init__(self, first):
        super().__init__(SmallCNN()[:8])
        self.classifier, self.first = nn.Linear(12, 3), first

    def forward(self, images):
        return self.net(images)

    def validation_step(self, batch, batch_idx, dataloader_idx):
        features = self(batch[0])
        if (dataloader_idx == 0) == self.first:
            self.classifier(features)

    def val_dataloader(self):
        data = TensorDataset(make_images(8)[0], torch.arange(8) % 3)
        return [DataLoader(data, 4), DataLoader(data, 4)]


@pytest.mark.parametrize("first", [True, False])
def test_features_of_one_loader_are_no_scores_of_another(first, tmp_path, warned):
    module = Bank(first)
    assert not validate(module, tmp_path)
    (line,) = warned
    assert "the forward of Bank and `classifier` are called apart" in line
    assert "GradCAM(target=lambda output: module.classifier(output))" in line


def test_the_line_on_features_tells_what_to_write(tmp_path, warned):
    module = Bank(True)
    cam = GradCAM(target=lambda output: module.classifier(output))
    lines = validate(module, tmp_path, cam)
    assert len(lines) == 2 * 8 * 2 and not [line for line in warned if "flat" not in line]
    logits = module.eval().classifier(module.net(make_images(8)[0]))
    for line in lines:
        assert line["predicted"] == int(logits[line["index"]].argmax())


class WithTeacher(Stranger):
    """solo-learn's BYOL and DINO: the frozen teacher's body and head are called apart."""

    def __init__(self):
        super().__init__(SmallCNN()[:8])
        self.classifier = nn.Linear(12, 3)
        self.teacher, self.teacher_head = SmallCNN()[:8], nn.Linear(12, 16)
        self.teacher.requires_grad_(False), self.teacher_head.requires_grad_(False)

    def forward(self, images):
        return self.classifier(self.net(images))

    def validation_step(self, batch, batch_idx):
        self(batch[0])
        self.teacher_head(self.teacher(batch[0]))


def test_a_teacher_in_two_parts_does_not_hide_its_student(tmp_path, warned):
    lines = validate(WithTeacher(), tmp_path)
    assert {line["layer"] for line in lines} == {"net.4"} and len(lines) == 16
    assert not [line for line in warned if "flat" not in line]


class Probe(nn.Module):
    """solo-learn's linear evaluation turns grad mode on or off for its body."""

    def __init__(self, around):
        super().__init__()
        self.body, self.head, self.around = SmallCNN()[:8], nn.Linear(12, 3), around

    def forward(self, images):
        with self.around():
            features = self.body(images)
        return self.head(features)


@pytest.mark.parametrize("layer", ["", "net.body.4"])
@pytest.mark.parametrize(
    "around", [torch.enable_grad, lambda: torch.set_grad_enabled(True), torch.no_grad]
)
def test_a_body_that_sets_grad_mode_for_itself(around, layer, tmp_path, warned):
    torch.manual_seed(0)
    module = Stranger(Probe(around))
    lines = validate(module, tmp_path, GradCAM(target_layer=layer))
    assert {line["layer"] for line in lines} == {"net.body.4"} and len(lines) == 16
    plain = Stranger(nn.Sequential(*module.net.body, module.net.head))
    same = validate(plain, tmp_path / "plain")
    assert [line["map"] for line in lines] == [line["map"] for line in same]


class Segments(Stranger):
    """segmentation_models.pytorch, torchgeo: a mask for each image."""

    def __init__(self):
        encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        decoder = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=4), nn.Conv2d(8, 3, 1))
        super().__init__(nn.Sequential(encoder, decoder))

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])


def test_a_network_of_masks_is_not_explained_by_its_own_answer(tmp_path, warned):
    cam = GradCAM(target=lambda output: output[:, 1].mean((1, 2)))
    assert not validate(Segments(), tmp_path, cam)
    assert "pass target_layer, such as '0" in warned[0], warned
    assert "(8x8)" in warned[0]


def test_the_line_on_masks_names_both_arguments(tmp_path, warned):
    assert not validate(Segments(), tmp_path)
    assert "GradCAM(target=" in warned[0] and "target_layer=" in warned[0]


def test_labels_that_the_user_says_are_none(tmp_path, warned):
    """AdaFace: the whole numbers beside the images say which validation set they are of."""
    lines = validate(
        Loads(SmallCNN(), Pictures()),
        tmp_path,
        GradCAM(classes="predicted", labels=lambda batch: None),
    )
    assert len(lines) == 8 and {line["label"] for line in lines} == {None}
    assert not [line for line in warned if "flat" not in line]


def test_a_misspelt_network_is_called_a_network():
    with pytest.raises(ValueError, match=r"network 'nett' does not exist in Stranger; close"):
        make_trainer(GradCAM(network="nett")).validate(Stranger(), verbose=False)


def test_what_is_refused_costs_two_batches(tmp_path, warned):
    """And not a search for its layer in each batch of a whole validation."""
    calls = []

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.lines, self.head = nn.Linear(32, 8), nn.Linear(3 * 32 * 8, 3)

        def forward(self, images):
            calls.append(len(images))
            return self.head(self.lines(images).flatten(1))

    module = Stranger(Counts(), num_images=24, batch_size=2)
    assert not validate(module, tmp_path)
    assert len(warned) == 1
    assert len(calls) <= 12 + 2 * 4
