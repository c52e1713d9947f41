"""Says when a network learns to be right for the wrong reason, and when its maps say nothing."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from litcam.callbacks.places.pictures import current_step
from litcam.callbacks.places.sending import FOLDER, Places
from litcam.explain.metrics.image_mean import ImageMean
from litcam.files import append_text

log = logging.getLogger("lightning.pytorch.callbacks.litcam")

# A mean over fewer images moves by more than a network's habits.
MIN_IMAGES = 50
# How far below chance, or below an earlier epoch, the maps have to be on the objects.
BELOW_CHANCE, BELOW_EARLIER = 0.95, 0.67
MOST_BLANK, ALL_BLANK = 0.5, 0.95


@dataclass(frozen=True)
class Measured:
    """What one validation measured, over all processes.

    Attributes:
        epoch: when.
        num_images: how many images have a map.
        accuracy: share of images whose predicted class is the true one; NaN without labels.
        guessing: the accuracy of naming any class, one over their number.
        energy_inside: mean share of a map that lies on the object; NaN without objects.
        chance: what a map without any preference would have there.
        pointing_game: share of maps that are largest on the object; NaN without objects.
        blank: share of images whose map shows nothing, by the reason.
    """

    epoch: int
    num_images: int
    accuracy: float
    guessing: float
    energy_inside: float
    chance: float
    pointing_game: float
    blank: dict[str, float]


@dataclass(frozen=True)
class Alarm:
    """Something to look into: a short `title`, and what was measured, in a line."""

    title: str
    text: str


class RightAnswers(ImageMean):
    """Share of images that are named rightly, and by guessing; those without a label are left out.

    Not the LightningModule's own accuracy, which may be called anything.
    """

    def __init__(self) -> None:
        super().__init__("right", "guessing")

    def update(self, logits: Tensor, labels: Tensor | None) -> None:
        """Adds logits `(batch, num_classes)` with class numbers `(batch,)`."""
        batch, num_classes = logits.shape
        labels = logits.new_full((batch,), -1) if labels is None else labels.to(logits.device)
        right = (logits.argmax(1) == labels).float()
        known = (labels >= 0) & (labels < num_classes)
        self._add(known, right=right, guessing=torch.full_like(right, 1 / num_classes))


class Alarms:
    """Watches a run from epoch to epoch; raises each kind of alarm once.

    *Shortcut*: the network is right more often than by guessing, and its maps lie on the objects
    less than a map without any preference would; or while accuracy rose they have left the objects
    by a third, both in their sum and in their peaks (a sum alone also falls where maps grow wider,
    as they do in honest training). Right answers then come from something else in the image.
    *Blank maps*: any is not finite; or more than half are all zero or constant, of a network that
    has learned something, or nearly all of any other.

    Neither is a proof: look at the pictures.
    """

    def __init__(self) -> None:
        self._history: list[Measured] = []
        self._raised: set[str] = set()

    def check(self, now: Measured | None) -> list[Alarm]:
        """The alarms that this validation raises for the first time; none if None was measured."""
        if now is None:
            return []
        found = [alarm for alarm in (self._shortcut(now), _blank(now)) if alarm is not None]
        self._history.append(now)
        new = [alarm for alarm in found if alarm.title not in self._raised]
        self._raised |= {alarm.title for alarm in new}
        return new

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run remembers what it saw and does not say it again."""
        if not self._history:
            return {}
        return {
            "history": [asdict(measured) for measured in self._history],
            "raised": sorted(self._raised),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._history = [Measured(**measured) for measured in state.get("history", [])]
        self._raised = set(state.get("raised", []))

    def _shortcut(self, now: Measured) -> Alarm | None:
        # Comparisons with NaN are false, so that what was not measured raises nothing.
        if now.num_images < MIN_IMAGES:
            return None
        rise = _noise(now)
        earlier = [then for then in self._history if now.accuracy >= then.accuracy + rise]
        before = max(earlier, key=lambda then: then.energy_inside, default=None)
        fell = before is not None and (
            now.energy_inside <= BELOW_EARLIER * before.energy_inside
            and now.pointing_game <= BELOW_EARLIER * before.pointing_game
        )
        below = now.energy_inside <= BELOW_CHANCE * now.chance
        if not fell and not (below and now.accuracy >= now.guessing + rise):
            return None
        chance = f"a map without preference has {now.chance:.2f} there"
        if before is not None and now.energy_inside < before.energy_inside:
            course = (
                f"accuracy rose from {before.accuracy:.2f} at epoch {before.epoch} to "
                f"{now.accuracy:.2f} while the share of the maps on the objects fell from "
                f"{before.energy_inside:.2f} to {now.energy_inside:.2f} ({chance})"
            )
        else:
            course = (
                f"accuracy is {now.accuracy:.2f}, but only {now.energy_inside:.2f} of the maps is "
                f"on the objects ({chance})"
            )
        return Alarm("shortcut", f"{course}: is there a cue beside the objects?")


def _noise(now: Measured) -> float:
    """Two standard errors of an accuracy, and no less than two points."""
    return max(0.02, 2 * sqrt(max(now.accuracy * (1 - now.accuracy), 0.0) / now.num_images))


def _blank(now: Measured) -> Alarm | None:
    share, broken = sum(now.blank.values()), now.blank.get("not finite", 0.0)
    # What has learned nothing yet may have no positive evidence for most classes.
    unlearned = now.accuracy < now.guessing + _noise(now)
    many = now.num_images >= MIN_IMAGES and share > (ALL_BLANK if unlearned else MOST_BLANK)
    if not many and not broken:
        return None
    kinds = [f"{100 * share:.3g}% {kind}" for kind, share in now.blank.items() if share]
    return Alarm("blank maps", f"of {now.num_images} maps {', '.join(kinds)}: nothing to see there")


def raise_alarms(
    trainer: pl.Trainer, alarms: Iterable[Alarm], folder: Path, places: Places
) -> None:
    """Says them on the console and to W&B, and keeps them in `alarms.jsonl`: on rank zero.

    Args:
        trainer: is in validation.
        alarms: what to say.
        folder: of the callback's pictures.
        places: where they are said.
    """
    for alarm in alarms:
        log.warning(f"GradCAM alarm, {alarm.title}: {alarm.text}")
        if getattr(trainer, "fast_dev_run", False):
            continue
        line = {"epoch": trainer.current_epoch, "step": current_step(trainer), **asdict(alarm)}
        with places.alone(FOLDER, {"alarms": 1}):
            folder.mkdir(parents=True, exist_ok=True)
            append_text(folder / "alarms.jsonl", json.dumps(line) + "\n")
        places.alert(trainer, f"GradCAM: {alarm.title}", alarm.text)
