"""The alarm: when it is raised, when not, and where it is said."""

import json
from math import nan

import lightning as L
import pytest
import torch
from wandb_files import inspect

from litcam.callbacks import GradCAM, WandbLogger
from litcam.callbacks.explained.alarm import Alarms, Measured, RightAnswers
from litcam.datamodules import SyntheticDataModule
from litcam.lightning_modules import Classifier

FINE = {"not finite": 0.0, "all zero": 0.1, "constant": 0.0}


def measured(epoch, accuracy, energy, pointing, *, chance=0.145, images=800, blank=FINE):
    return Measured(epoch, images, accuracy, 0.125, energy, chance, pointing, blank)


def titles(alarms, course, **facts):
    return [
        [alarm.title for alarm in alarms.check(measured(epoch, *point, **facts))]
        for epoch, point in enumerate(course)
    ]


# What the demo's network did with a colour in the corner (the first), and without: accuracy, energy
# inside, pointing game. Honest maps grow wider, so that their energy inside falls as well.
CHEATING = [(0.444, 0.157, 0.13), (0.801, 0.126, 0.13), (0.961, 0.125, 0.17), (0.989, 0.124, 0.19)]
HONEST = [(0.251, 0.268, 0.49), (0.498, 0.377, 0.81), (0.749, 0.305, 0.87), (0.964, 0.250, 0.86)]


def test_a_shortcut_is_said_once():
    assert titles(Alarms(), CHEATING) == [[], ["shortcut"], [], []]


def test_an_honest_network_raises_nothing():
    assert titles(Alarms(), HONEST) == [[]] * 4


@pytest.mark.parametrize(
    "course",
    [
        [(0.99, 0.10, 0.1)],  # learned before the first validation
        [(0.5, 0.60, 0.9), (0.9, 0.35, 0.5)],  # left the objects, not yet below chance
        [(0.5, 0.60, 0.9), (0.7, 0.55, 0.9), (0.9, 0.35, 0.5)],
    ],
)
def test_other_courses_of_a_shortcut(course):
    assert titles(Alarms(), course)[-1] == ["shortcut"]


@pytest.mark.parametrize(
    ("course", "facts"),
    [
        ([(0.13, 0.10, 0.1)], {}),  # knows nothing yet
        ([(0.9, 0.60, 0.9), (0.5, 0.35, 0.5)], {}),  # the accuracy falls as well
        ([(0.5, 0.60, 0.9), (0.51, 0.35, 0.5)], {}),  # it rises by less than it fluctuates
        ([(0.5, 0.60, 0.9), (0.9, 0.30, 0.9)], {}),  # wider maps, still largest on the object
        ([(0.44, 0.157, 0.1), (0.80, 0.126, 0.1)], {"images": 20}),  # too few to tell
        ([(nan, 0.157, 0.1), (nan, 0.126, 0.1)], {}),  # no labels
        ([(0.44, nan, nan), (0.80, nan, nan)], {"chance": nan}),  # no objects
    ],
)
def test_what_is_no_shortcut(course, facts):
    assert not any(titles(Alarms(), course, **facts))


@pytest.mark.parametrize(
    ("kinds", "accuracy", "words"),
    [
        ((0.001, 0.1, 0.0), 0.5, ["0.1% not finite", "10% all zero"]),
        ((0.0, 0.6, 0.0), 0.5, ["60% all zero"]),
        ((0.0, 0.6, 0.0), nan, ["60% all zero"]),  # no labels
        ((0.0, 0.3, 0.3), 0.5, ["30% constant"]),
        ((0.0, 0.5, 0.0), 0.5, None),
        ((0.0, 0.9, 0.0), 0.13, None),  # it has learned nothing yet
        ((0.0, 0.99, 0.0), 0.13, ["99% all zero"]),
    ],
)
def test_blank_maps(kinds, accuracy, words):
    blank = dict(zip(FINE, kinds, strict=True))
    alarms = Alarms().check(measured(0, accuracy, 0.4, 0.8, blank=blank))
    if words is None:
        assert not alarms
    else:
        assert [alarm.title for alarm in alarms] == ["blank maps"]
        assert all(word in alarms[0].text for word in words)


def test_a_few_blank_maps_are_no_alarm():
    blank = {"not finite": 0.0, "all zero": 0.9, "constant": 0.0}
    assert not Alarms().check(measured(0, 0.5, 0.4, 0.8, images=20, blank=blank))


def test_a_resumed_run_remembers():
    first, second = Alarms(), Alarms()
    assert first.state_dict() == {}
    titles(first, CHEATING[:1])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    (alarm,) = second.check(measured(1, *CHEATING[1]))
    assert "from 0.44 at epoch 0 to 0.80" in alarm.text and "from 0.16 to 0.13" in alarm.text
    third = Alarms()
    third.load_state_dict(second.state_dict())
    assert not third.check(measured(2, *CHEATING[2]))


def test_right_answers_leave_out_what_has_no_label():
    answers = RightAnswers()
    answers.update(torch.eye(4), torch.tensor([0, 1, 0, -1]))
    answers.update(torch.eye(4), None)
    assert float(answers.compute()) == pytest.approx(2 / 3) and answers.facts["guessing"] == 0.25


class Broken(L.LightningModule):
    """Its logits are NaN, and so are its maps."""

    def __init__(self):
        super().__init__()
        self.model = Classifier("test_resnet", 4).backbone
        torch.nn.init.constant_(self.model.get_classifier().weight, torch.nan)

    def validation_step(self, batch, batch_idx):
        self.model(batch["image"])


def test_it_is_said_on_the_console_to_wandb_and_kept(tmp_path, caplog, monkeypatch):
    """With the real W&B client, offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(project="litcam", save_dir=tmp_path)
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        # Named: the rule that finds it would refuse a gradient that is not finite.
        callbacks=[GradCAM(2, target_layer="layer3")],
    )
    data = SyntheticDataModule(64, 64, num_classes=4, image_size=32, batch_size=32)
    trainer.validate(Broken(), data, verbose=False)
    logger.experiment.finish()
    said = [record.message for record in caplog.records if "alarm, blank maps" in record.message]
    assert len(said) == 1 and "100% not finite" in said[0]
    (file,) = tmp_path.rglob("alarms.jsonl")
    (line,) = map(json.loads, file.read_text().splitlines())
    assert line["title"] == "blank maps" and line["text"] in said[0]
    # In W&B's own record of the run.
    (run,) = tmp_path.rglob("*.wandb")
    alerts = [record for record in inspect(run) if record.get("alert")]
    assert [alert["alert"]["title"] for alert in alerts] == ["GradCAM: blank maps"]
    assert alerts[0]["alert"]["text"] == line["text"]
