"""Means, intervals and effects of a sweep, against scipy's own."""

import json

import numpy as np
import pytest
from scipy import stats

from litcam.report.filling import fill_in
from litcam.sweeps import Arm, Results, plan, read_sweep
from litcam.sweeps.arms import make_arms
from litcam.sweeps.figure import draw
from litcam.sweeps.results import interval

TOLD = {
    "metric": {"name": "val/acc1", "goal": "maximize"},
    "command": ["litcam", "fit", "${args}"],
    "parameters": {
        "model.lr": {"values": [0.1, 0.2, 0.3]},
        "model.drop_rate": {"values": [0.0, 0.5]},
        "seed_everything": {"values": [0, 1, 2]},
    },
}


def measure(lr, drop, seed):
    return 0.5 + lr - 0.1 * (drop > 0) + 0.01 * np.sin(7 * seed + 30 * lr)


@pytest.fixture
def made(tmp_path):
    sweep = read_sweep(TOLD)
    arms = make_arms(plan(sweep), sweep.varied, tmp_path)
    for arm in arms:
        arm.write("finished", 3.0)
        last = measure(*arm.values.values())
        table = f"epoch,step,train/loss,val/acc1\n0,1,2.0,\n0,1,,0.1\n1,2,,{last}\n"
        (arm.folder / "metrics.csv").write_text(table)
    return sweep, arms


def test_each_setting_over_its_seeds(made):
    settings = Results(*made).settings()
    assert [tuple(each.values.values()) for each in settings] == [
        (lr, drop) for lr in (0.1, 0.2, 0.3) for drop in (0.0, 0.5)
    ]
    for each in settings:
        values = [measure(*each.values.values(), seed) for seed in range(3)]
        assert each.measured == pytest.approx(values)
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert interval(each.measured) == pytest.approx((high - low) / 2)


def test_each_setting_after_some_epochs(made):
    table = Results(*made, epochs=[1, 0, 0]).over_epochs().splitlines()
    assert table[0] == "| val/acc1 | after epoch 1 | after epoch 0 |"
    values = [measure(0.1, 0.0, seed) for seed in range(3)]
    half = interval(values)
    assert (
        table[2]
        == f"| lr 0.1, drop_rate 0.0 | {np.mean(values):.4f} ± {half:.4f} | 0.1000 ± 0.0000 |"
    )
    assert len(table) == 2 + 6
    with pytest.raises(ValueError, match="seed=0 has no val/acc1 after epoch 5, but after 0, 1"):
        Results(*made, epochs=[5]).text()


def test_effects_are_paired(made):
    effects = {(each.parameter, each.value): each for each in Results(*made).effects()}
    dropped = effects["model.drop_rate", 0.5]
    assert dropped.differences == pytest.approx([-0.1] * 9)
    assert dropped.say(4) == "drop_rate 0.5 against 0.0: -0.1000 [-0.1000, -0.1000], 9 pairs"
    pairs = [
        (measure(0.1, drop, seed), measure(0.3, drop, seed))
        for drop in (0.0, 0.5)
        for seed in range(3)
    ]
    first, second = np.array(pairs).T
    wanted = stats.ttest_rel(second, first).confidence_interval()
    line = effects["model.lr", 0.3].say(6)
    assert f"[{wanted.low:+.6f}, {wanted.high:+.6f}], 6 pairs" in line


def test_noise_is_called_noise(made):
    sweep, arms = made
    for arm in arms:
        noise = 0.5 + 0.01 * (-1) ** arm.values["seed_everything"] * (arm.values["model.lr"] > 0.1)
        (arm.folder / "metrics.csv").write_text(f"epoch,step,val/acc1\n1,2,{noise}\n")
    lines = [each.say(4) for each in Results(sweep, arms).effects()]
    assert all(line.endswith("no difference beyond noise") for line in lines[:2])


def test_the_table_marks_the_best_and_leaves_out_what_is_not_done(made):
    sweep, arms = made
    arms[0].write("failed", 1.0, "out of memory")
    table = Results(sweep, arms).table().splitlines()
    assert table[0] == "| lr | drop_rate | val/acc1 | 95 % | seeds |"
    assert table[2].startswith("| 0.1 | 0.0 |") and table[2].endswith("| 2 |")
    best = [line for line in table if "**" in line]
    assert len(best) == 1 and best[0].startswith("| 0.3 | 0.0 |")
    rows = Results(sweep, arms).rows().splitlines()
    assert rows[0].split(",")[:5] == [*sweep.varied, "state", "seconds"]
    assert rows[1].startswith("0.1,0.0,0,failed,1.0") and len(rows) == 19


@pytest.mark.parametrize("varied", [3, 2, 1])
def test_a_plot_of_curves_or_rows(made, varied):
    sweep, arms = made
    kept = [arm for arm in arms if arm.values["model.lr"] <= varied / 10]
    picture = draw(Results(sweep, kept))
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_an_arm_of_other_words_is_not_taken_for_this_one(made):
    _, (arm, *_) = made
    assert arm.read()["state"] == "finished"
    other = Arm(arm.name, arm.values, [*arm.words, "--model.lr=3"], arm.folder)
    assert other.read()["state"] == "planned"
    (arm.folder / "arm.json").write_text(json.dumps(["torn"]))
    assert arm.read()["state"] == "planned"


def test_a_page_gets_what_was_measured_and_nothing_else_of_it_changes(made, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Study\n<!-- lr -->\n<!-- /lr -->\nAfter it.\n")
    results = Results(*made)
    for _ in range(2):  # again is the same
        fill_in(page, "lr", f"{results.text()}\n{results.cost()}")
        before, rest = page.read_text().split("<!-- lr -->")
        table, after = rest.split("<!-- /lr -->")
        assert (before, after) == ("# Study\n", "\nAfter it.\n")
        assert table.strip().startswith(results.table())
        assert table.strip().endswith("18 runs of 3 s (median), `val/acc1`.")
    with pytest.raises(ValueError, match="has no lines <!-- rate --> and <!-- /rate -->"):
        fill_in(page, "rate", "")
