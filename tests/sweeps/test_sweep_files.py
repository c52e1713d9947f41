"""What a sweep's file says, which arms come of it, and which are stopped."""

import re

import numpy as np
import pytest
from scipy import stats

from litcam.sweeps import plan, read_sweep
from litcam.sweeps.arms import name_of
from litcam.sweeps.description import Hyperband
from litcam.sweeps.stopping import find_hopeless

COMMAND = ["${env}", "litcam", "fit", "--config", "demo.yaml", "${args}"]
METRIC = {"name": "val/acc1", "goal": "maximize"}


def a_sweep(parameters, **others):
    return {"metric": METRIC, "command": COMMAND, "parameters": parameters, **others}


def test_every_combination_in_the_order_of_the_file():
    told = {"model.lr": {"values": [1, 2]}, "seed_everything": {"values": [0, 1]}}
    sweep = read_sweep(a_sweep({**told, "data.root": {"value": "pets"}}))
    assert plan(sweep) == [
        {"model.lr": lr, "seed_everything": seed, "data.root": "pets"}
        for lr in (1, 2)
        for seed in (0, 1)
    ]
    assert sweep.varied == ["model.lr", "seed_everything"]
    assert sweep.words == ["--config", "demo.yaml"]


def test_nested_parameters_get_dots():
    nested = {"model": {"parameters": {"init_args": {"parameters": {"lr": {"values": [1]}}}}}}
    assert plan(read_sweep(a_sweep(nested))) == [{"model.init_args.lr": 1}]


@pytest.mark.parametrize(
    ("how", "law"),
    [
        ({"min": 0.1, "max": 0.5}, stats.uniform(0.1, 0.4)),
        (
            {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
            stats.loguniform(1e-4, 1e-1),
        ),
        ({"distribution": "normal", "mu": 2, "sigma": 3}, stats.norm(2, 3)),
        ({"distribution": "log_normal", "mu": 0, "sigma": 1}, stats.lognorm(1)),
        ({"distribution": "beta", "a": 2, "b": 5}, stats.beta(2, 5)),
    ],
)
def test_what_is_drawn_follows_its_law(how, law):
    sweep = read_sweep(a_sweep({"x": how}, method="random", run_cap=2000))
    drawn = [arm["x"] for arm in plan(sweep)]
    assert stats.kstest(drawn, law.cdf).pvalue > 0.01
    assert drawn == [arm["x"] for arm in plan(sweep)]


def test_whole_numbers_steps_and_probabilities():
    how = {
        "whole": {"min": 1, "max": 3},
        "step": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
        "often": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
        "free": {"min": 0.0, "max": 1.0},
    }
    arms = plan(read_sweep(a_sweep(how, method="random", run_cap=2000)))
    assert {arm["whole"] for arm in arms} == {1, 2, 3}
    assert {arm["step"] for arm in arms} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert np.mean([arm["often"] == "a" for arm in arms]) == pytest.approx(0.9, abs=0.03)


def test_few_possible_arms_come_once():
    arms = plan(read_sweep(a_sweep({"x": {"values": [1, 2]}}, method="random", run_cap=9)))
    assert sorted(arm["x"] for arm in arms) == [1, 2]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"method": "bayes"}, "method 'bayes' needs W&B's server"),
        ({"metod": "grid"}, "did you mean method?"),
        ({"metric": "val/acc1"}, "needs `metric: {name"),
        ({"metric": {"name": "val/acc1", "goal": "max"}}, "goal must be minimize or maximize"),
        ({"method": "random"}, "method random needs `run_cap: N`"),
        ({"run_cap": 0}, "run_cap must be a whole number of at least 1, got 0"),
        ({"command": ["python", "mine.py", "${args}"]}, "litcam sweep runs `litcam fit`"),
        ({"command": [*COMMAND[:-1], "${args_json}", "${args}"]}, "${args_json} cannot be filled"),
        ({"parameters": {"x": 3}}, "parameter x must be `{value"),
        ({"parameters": None}, "a sweep needs `parameters:`"),
        ({"early_terminate": {"type": "median"}}, "the type must be hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta must be above"),
        ({"parameters": {"x": {"min": 3, "max": 1}}}, "min 3 is not below max 1"),
        ({"parameters": {"x": {"min": 0.0, "max": 1.0}}}, "a grid needs `values`"),
        ({"parameters": {"x": {"distribution": "uniformly", "min": 0, "max": 1}}}, "'uniformly'"),
    ],
)
def test_what_cannot_be_run_is_refused(told, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        plan(read_sweep({**a_sweep({"x": {"values": [1, 2]}}), **told}))
    assert "\n" not in str(error.value)


def test_hyperband_as_wandb_documents_it():
    """The example of W&B's own engine (`hyperband_stop_runs` of its package sweeps 0.3)."""
    histories = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}
    told = {"type": "hyperband", "max_iter": 5, "eta": 2, "s": 2}
    early = read_sweep(a_sweep({"x": {"values": [1]}}, early_terminate=told)).early
    assert early == Hyperband([1, 2], 0.5)
    assert find_hopeless(histories, ["b", "c", "d"], early, maximize=False) == ["b"]
    upside_down = {name: [-value for value in values] for name, values in histories.items()}
    assert find_hopeless(upside_down, ["b", "c", "d"], early, maximize=True) == ["b"]


def test_strict_looks_at_the_band_and_else_at_the_best():
    histories = {"bad now": [1, 9], "good": [5, 5], "fair": [5, 6]}
    rule = Hyperband([2], 0.5)
    assert find_hopeless(histories, ["bad now"], rule, maximize=False) == []
    strict = Hyperband([2], 0.5, strict=True)
    assert find_hopeless(histories, ["bad now"], strict, maximize=False) == ["bad now"]


def test_names_of_folders_are_short_and_differ():
    assert name_of({"data.root": "a/b c", "model.lr": 1e-05}) == "root=a_b_c,lr=1e-05"
    long = {f"model.a_parameter_{number}": number for number in range(9)}
    assert len(name_of(long)) == 100 and name_of(long) != name_of({**long, "x": 1})
    taken = name_of({"data.root": "a/b"})
    assert name_of({"data.root": "a_b"}, [taken]) != taken
