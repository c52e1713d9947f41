import random
import time

import pytest

from litcam.datamodules.remote.policy import Policy


def drain(policy, limit=10**9):
    """Fetches what the policy says, each at once; names in order, and what was evicted."""
    fetched, evicted = [], []
    while len(fetched) < limit and (step := policy.next()):
        evicted += step.evict
        if step.file is not None:
            policy.fetched(step.file, step.num_bytes)
            fetched.append(step.file)
    return fetched, evicted


def files(names):
    return [(name, 10) for name in names]


def test_nothing_to_do():
    assert Policy().next() is None
    policy = Policy()
    policy.follow("p", files("ab"))
    assert drain(policy) == (["a", "b"], [])
    assert policy.next() is None and policy.used == 20


def test_requests_come_first_and_the_nearest_need_next():
    policy = Policy()
    policy.follow("p", files("abcd"))
    policy.follow("q", files("wxyz"))
    policy.at("q", 2, 0)
    policy.request("d", 10)
    assert [policy.next().file for _ in range(8)] == list("dwxaybzc")


def test_a_plan_is_followed_so_far_ahead_and_no_farther():
    policy = Policy(ahead=3)
    policy.follow("p", files("abcdefgh"))
    assert drain(policy)[0] == list("abc")
    policy.at("p", 2, 1)
    assert drain(policy)[0] == list("de")
    policy.at("p", 8, 7)
    assert drain(policy)[0] == ["h"]


def test_prefetching_stays_within_the_budget_and_keeps_what_is_needed():
    policy = Policy(40)
    policy.follow("p", files("abcdefgh"))
    assert drain(policy) == (list("abcd"), [])
    policy.at("p", 4, 2)
    assert drain(policy) == (list("ef"), ["a", "b"])
    assert policy.used == 40


def test_what_is_read_goes_before_what_was_there_and_that_before_what_is_needed_late():
    policy = Policy(50, near=0)
    for name in "xy":
        policy.found(name, 10)
    policy.follow("p", files("abc"))
    drain(policy)
    policy.at("p", 3, 1)
    evicted = []
    for name in "mno":
        policy.request(name, 10)
        evicted += drain(policy)[1]
    assert evicted == ["a", "x", "y"]
    for name in "mno":
        policy.hold(name)
    policy.request("r", 10)
    assert drain(policy, 1) == (["r"], ["c"])


def test_what_is_held_or_kept_stays():
    policy = Policy(20)
    policy.found("kept", 10)
    policy.keep("kept")
    policy.found("held", 10)
    policy.hold("held")
    policy.request("new", 10)
    assert policy.next() is None
    policy.release("held")
    assert drain(policy) == (["new"], ["held"])


def test_a_budget_below_one_file_does_not_stop_a_request():
    policy = Policy(5)
    policy.follow("p", files("ab"))
    assert policy.next() is None
    policy.request("a", 10)
    assert drain(policy)[0] == ["a"]
    policy.request("b", 10)
    assert drain(policy) == (["b"], ["a"])


def test_a_lower_budget_is_kept_at_once():
    policy = Policy()
    for name in "abc":
        policy.found(name, 10)
    policy.budget = 15
    assert policy.excess() == ["a", "b"] and policy.used == 10


def test_a_file_that_two_need_stays_for_the_second():
    policy = Policy(20)
    policy.follow("p", files("a"))
    policy.follow("q", files("xya"))
    policy.request("a", 10)
    drain(policy, 1)
    policy.at("p", 1, 1)
    assert "a" in policy
    policy.request("m", 10)
    assert drain(policy, 1)[0] == ["m"] and "a" in policy


def test_what_failed_is_tried_again_only_where_that_helps():
    policy = Policy()
    policy.follow("p", files("ab"))
    assert policy.next().file == "a"
    policy.failed("a", again=True)
    assert policy.next().file == "a"
    policy.failed("a", again=False)
    assert [policy.next().file, policy.next()] == ["b", None]
    policy.request("a", 10)
    assert policy.next().file == "a"
    policy.fetched("a", 10)
    policy.lost("a")
    assert policy.used == 10


class Epochs:
    """Processes that read a node's files in an order, several at once, over and over."""

    def __init__(self, num_files, num_plans, budget, window=8):
        self.num_files, self.num_plans, self.window = num_files, num_plans, window
        self.policy = Policy(budget)
        self.downloads = self.waits = self.peak = self.calls = 0

    def run(self, seed):
        order = random.Random(seed).sample(range(self.num_files), self.num_files)
        share = self.num_files // self.num_plans
        parts = [order[plan * share : (plan + 1) * share] for plan in range(self.num_plans)]
        for plan, part in enumerate(parts):
            self.policy.follow(plan, [(file, 1) for file in part])
        for step in range(share + self.window):
            for plan, part in enumerate(parts):
                self.policy.at(plan, min(share, step + 1), max(0, step + 1 - self.window))
                if step < share and part[step] not in self.policy:
                    self.waits += 1
                    self.policy.request(part[step], 1)
                    self.fetch(1)
                    assert part[step] in self.policy
            self.fetch(4 * self.num_plans)
            self.calls += 6 * self.num_plans
        for plan in range(self.num_plans):
            self.policy.close(plan)

    def fetch(self, limit):
        self.downloads += len(drain(self.policy, limit)[0])
        self.peak = max(self.peak, self.policy.used)


@pytest.mark.parametrize(
    ("budget", "downloads", "waits"),
    [(None, 1.0, 0.02), (600, 1.5, 0.02), (100, 2.0, 0.02), (30, 2.05, 1.0)],
)
def test_epochs_cost_little_more_than_they_must(budget, downloads, waits):
    epochs = Epochs(1000, 4, budget)
    for epoch in range(2):
        epochs.run(epoch)
    assert epochs.downloads <= downloads * 1000
    assert epochs.waits <= waits * 2000
    assert budget is None or epochs.peak <= budget


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_a_call_costs_the_same_with_many_files(share):
    def seconds(num_files):
        epochs = Epochs(num_files, 8, int(num_files * share))
        epochs.run(0)
        started = time.process_time()
        epochs.run(1)
        return (time.process_time() - started) / epochs.calls

    few, many = min(seconds(800) for _ in range(3)), seconds(25_000)
    assert many < 4 * few
