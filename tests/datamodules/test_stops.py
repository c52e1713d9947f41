"""A run that is stopped anywhere and started again: each image trained once, weights bitwise.

    python tests/datamodules/test_stops.py [WORDS]   # the whole table, as Markdown; rows with WORDS

A row is a way to stop, a place in a batch, the batch, the kind of run and the source of its images.
The run is held against one that was not stopped.
"""

import itertools
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_resume import counts, diary, make_roots, roots, run, same_weights

__all__ = ["roots"]

KINDS = {
    "plain": {},
    "accumulation 2": {"accumulate_grad_batches": 2},
    "limit 4": {"limit_train_batches": 4},
    "validation every 3": {"val_check_interval": 3},
}
HOWS = ("exception", "SIGINT", "SIGTERM", "SIGKILL")
IN_A_BATCH = ("start", "forward", "backward", "optimizer", "step", "callback")
AT_AN_END = ("validation", "measured", "epoch")
EPOCH = 1
# An exception out of the optimiser itself leaves weights of which some were stepped: no litcam and
# no Lightning can tell which, so its batch is taken again.
UNKNOWABLE = {("exception", "step")}


def rows():
    """Every row that means something: how, where, batch, kind, source."""
    for how, kind, source in itertools.product(HOWS, KINDS, ("folders", "shards")):
        last = 3 if kind == "limit 4" else 5
        places = [(where, batch) for where in IN_A_BATCH for batch in (0, 2, 3, last)]
        places += [(where, -1) for where in AT_AN_END]
        for where, batch in dict.fromkeys(places):
            steps = kind != "accumulation 2" or batch % 2 == 1
            if where not in ("optimizer", "step") or steps:
                yield how, where, batch, kind, source


class Table:
    """Runs rows, and holds them against runs that were not stopped."""

    def __init__(self, roots: Path, folder: Path) -> None:
        self.roots, self.folder, self.numbers = roots, folder, itertools.count()

    def whole(self, kind, source):
        """The run that was not stopped."""
        folder = self.folder / f"{kind} {source}"
        if not folder.exists():
            done = run(self.roots / source, folder, every=None, options=KINDS[kind])
            assert done == 0
        return folder

    def stopped(self, how, where, batch, kind, source, every=None):
        """A run that was stopped there and gone on with; and how it ended when it was stopped."""
        folder = self.folder / f"stopped {next(self.numbers)}"
        options = {"every": every, "options": KINDS[kind]}
        stop = {"how": how, "where": where, "epoch": EPOCH, "batch": batch}
        code = run(self.roots / source, folder, stop=stop, **options)
        assert run(self.roots / source, folder, **options) == 0
        return folder, code

    def compare(self, how, where, batch, kind, source, every=None):
        """How often images were trained in the end, and whether weights and counts are equal."""
        whole = self.whole(kind, source)
        folder, code = self.stopped(how, where, batch, kind, source, every)
        expected, found = (
            [i for (epoch, *_), seen in sorted(diary(at).items()) for i in seen if epoch == EPOCH]
            for at in (whole, folder)
        )
        times = [found.count(index) for index in expected]
        return SimpleNamespace(
            code=code,
            once=times.count(1),
            twice=sum(count > 1 for count in times),
            never=times.count(0),
            same_batches=diary(folder) == diary(whole),
            same_validations=sorted(diary(folder, "val")) == sorted(diary(whole, "val")),
            same_counts=of_training(folder) == of_training(whole),
            bitwise=same_weights(folder, whole),
        )


def of_training(folder):
    """What `Coverage` counted; Lightning does not measure anew what a checkpoint says was."""
    return {
        epoch: {name: value for name, value in found.items() if name.startswith("train")}
        for epoch, found in counts(folder).items()
    }


@pytest.fixture(scope="module")
def table(roots, tmp_path_factory):
    return Table(roots, tmp_path_factory.mktemp("stops"))


def check(found, how, where):
    assert found.code != 0 or how == "SIGTERM"
    assert (found.twice, found.never) == (0, 0)
    assert found.same_validations
    if (how, where) not in UNKNOWABLE:
        assert found.same_batches and found.bitwise and found.same_counts


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("where", IN_A_BATCH)
@pytest.mark.parametrize("how", HOWS[:3])
def test_a_batch_that_is_stopped(table, how, where):
    found = table.compare(how, where, 3, "plain", "folders")
    check(found, how, where)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("where", ["backward", "callback", *AT_AN_END])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_runs(table, kind, where):
    last = 3 if kind == "limit 4" else 5
    for how, batch in (("exception", last), ("SIGINT", 2)):
        check(table.compare(how, where, batch, kind, "shards"), how, where)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["callback", *AT_AN_END])
def test_a_kill_with_checkpoints_of_steps(table, kind, where):
    """A checkpoint of an epoch's last step has its validation yet to come."""
    last = 3 if kind == "limit 4" else 5
    check(table.compare("SIGKILL", where, last, kind, "folders", every=1), "SIGKILL", where)


def main(words: str) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as scratch:
        make_roots(Path(scratch))
        table = Table(Path(scratch), Path(scratch, "runs"))
        table.folder.mkdir()
        print("| stopped by | in | batch | run | source | once | twice | never | weights | rest |")
        print("|" + "---|" * 10)
        bad = 0
        for row in rows():
            if words and words not in " ".join(map(str, row)):
                continue
            found = table.compare(*row)
            rest = ("batches", "validations", "counts")
            differ = [name for name in rest if not getattr(found, f"same_{name}")]
            weights = "bitwise" if found.bitwise else "differ"
            bad += bool(differ) or not found.bitwise
            cells = (*row, found.once, found.twice, found.never, weights, ", ".join(differ))
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        print(f"\n{bad} rows differ")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
