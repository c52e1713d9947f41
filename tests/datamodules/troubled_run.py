"""`litcam fit` on two processes, one of which gets into trouble: python troubled_run.py fit WORDS.

What each process prints goes to its own file, ``said-RANK``, so that its last line can be read.
"""

import os
import signal
import sys
import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback

TROUBLED = int(os.environ["TROUBLED"])


class Trouble(Callback):
    """Does to the process TROUBLED what KIND says, in the second epoch."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def happens(self, trainer, kind):
        now = (trainer.current_epoch, trainer.global_rank, self.kind) == (1, TROUBLED, kind)
        if now:
            Path("began").touch()
        return now

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            if self.happens(trainer, "training"):
                raise RuntimeError("a bug in a training step")
            if self.happens(trainer, "killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.happens(trainer, "stuck elsewhere"):
                raise RuntimeError("a bug while the other one is stuck")
            if self.kind == "stuck elsewhere" and trainer.current_epoch == 1:
                time.sleep(1000)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if self.happens(trainer, "validation"):
            raise RuntimeError("a bug in a validation step")

    def on_train_epoch_start(self, trainer, module):
        if self.happens(trainer, "disk"):
            # What this process reads next in its epoch is no file any more: an OSError in a worker.
            dataset = trainer.train_dataloader.dataset
            for index in trainer.train_dataloader.indices()[-4:]:
                path = Path(dataset.place(int(index)))
                path.unlink()
                path.mkdir()


if __name__ == "__main__":
    rank = os.environ.get("LOCAL_RANK", "0")
    target = os.open(f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    from litcam.train import main

    main(sys.argv[1:])
