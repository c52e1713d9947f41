"""The benchmarks run on whatever device there is, and say so in one line where there is none."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PEERS = ("lightly", "torchcam", "captum", "litdata", "webdataset")


@pytest.fixture
def scripts(monkeypatch):
    """They import each other by name, as `python benchmarks/speed/cam.py` has it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def run(*words, path=""):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_command_for_a_gpu_runs_all_its_parts(tmp_path):
    for name in PEERS:  # a bare machine has none of them
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on a bare machine')")
    done = run("-m", "benchmarks", "--device", "cpu", "--small", path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    tables = done.stdout.split("\n### ")[1:]
    rows = [[line for line in table.splitlines() if line.startswith("| ")][1:] for table in tables]
    assert [len(each) for each in rows] == [2, 2 * 2 * 3, 6, 1]
    eager = [row for row in rows[1] if "eager" in row]
    maps = "0 drawn, none measured", "8 drawn, none measured", "8 drawn, all measured"
    assert [row.split(" | ")[-1] for row in eager] == [f"{each} |" for each in 2 * maps]
    # Maps of a CPU and of the same CPU.
    assert all("| yes | 0.0e+00 | 0.0e+00 |" in row for row in rows[0])
    assert "peak of cpu not known: no shares" in done.stdout


@pytest.mark.slow
def test_it_says_where_there_is_no_gpu():
    done = run("-m", "benchmarks", "--gpu")
    assert (done.returncode, done.stdout) == (1, "")
    said = "benchmarks: there is no CUDA GPU here; --device cpu --small tries all parts\n"
    assert done.stderr == said


@pytest.mark.slow
@pytest.mark.parametrize("script", ["cam.py", "validation.py"])
def test_a_wrong_device_is_one_line(script):
    done = run(f"benchmarks/speed/{script}", "--device", "cuda:3")
    assert done.returncode == 2
    assert done.stderr.startswith("litcam: device 'cuda:3' is not here: there are 0 CUDA devices")
    assert done.stderr.count("\n") == 1


def test_a_part_that_fails_is_a_row_and_the_rest_goes_on(scripts, capsys):
    from gpu_plan import Report

    report = Report()
    report.table("Title", "a", "b")
    with report.attempt("first"):
        raise RuntimeError("out of\nmemory")
    with report.attempt("second"):
        report.row("second", 1)
    said = capsys.readouterr().out
    assert "| first | failed: RuntimeError: out of memory |\n| second | 1 |" in said
    assert report.failures == ["first"]


def test_a_share_of_a_chip_that_is_known(scripts, monkeypatch):
    import chips

    assert chips.find_chip("NVIDIA H100 80GB HBM3").name == "H100 SXM"
    assert chips.find_chip("NVIDIA A100-PCIE-40GB").name == "A100 40 GB"
    for other in ("NVIDIA L40S", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D"):
        assert chips.find_chip(other) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    cuda = torch.device("cuda")
    assert chips.tell_speed(989e12, 2.0, cuda) == "494.50 TFLOP/s, 50.0% of the peak"
    assert chips.tell_speed(989e12, 2.0, CPU) == "494.50 TFLOP/s"
    assert "H200 SXM: 989 TFLOP/s" in chips.tell_peak(cuda)


def test_operations_are_counted_with_attention(scripts):
    import chips

    attend = torch.nn.functional.scaled_dot_product_attention
    query = torch.randn(1, 2, 8, 16)
    with torch.no_grad():
        # Two products of 8 x 8 x 16 for each of two heads, a multiply-add being two.
        assert chips.count_flops(lambda: attend(query, query, query)) == 2 * 2 * 2 * 8 * 8 * 16


def test_a_stopwatch(scripts):
    import time

    from timing import Stopwatch, measure

    watch = Stopwatch(CPU)
    for _ in range(3):
        watch.mark()
        time.sleep(0.01)
    assert all(0.01 <= span < 0.5 for span in watch.spans())
    assert measure(lambda: time.sleep(0.01), CPU) >= 0.01


def test_events_on_cuda(scripts, monkeypatch):
    """No GPU here: what is called, and in which order."""
    from timing import measure

    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            calls.append(f"record in {stream}")

        def synchronize(self):
            calls.append("wait for the event")

        def elapsed_time(self, end):
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "its stream")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append("wait"))
    assert measure(lambda: calls.append("work"), torch.device("cuda")) == 1.5
    record = "record in its stream"
    assert calls == ["wait", record, "work", record, "wait for the event"]


def test_waits_are_counted_by_kind_and_line(scripts, capsys):
    from gpu_plan import Report
    from gpu_training import SYNC, Waits, tell_waits

    log = []
    waits = Waits(log)

    def warn(text, line):
        log.append(SimpleNamespace(message=text, filename="a/b/callbacks/c.py", lineno=line))

    for epoch in range(3):
        waits.first.on_train_batch_start()
        warn("something else", 1)
        waits.last.on_train_batch_end()
        waits.first.on_validation_batch_start()
        for _ in range(5 if epoch == 0 else 2):
            warn(f"called a {SYNC}", 7)
        waits.last.on_validation_batch_end()
    tell_waits(waits, 3, Report())
    rows = capsys.readouterr().out.splitlines()
    assert rows == ["| train batch | 0.0 |  |", "| validation batch | 2.0 | callbacks/c.py:7 (9) |"]


def test_operators_of_a_batch_are_counted(scripts):
    import chips
    import operators

    works = {way: operators.count("test_resnet", way, 4, 64) for way in operators.WAYS}
    plain, unmeasured, measured = works.values()
    network = timm.create_model("test_resnet").eval()
    images = torch.randn(4, 3, 64, 64)
    flops = chips.count_flops(torch.no_grad()(lambda: network(images)))
    assert sum(work.flops for work in plain) == flops
    # A batch without shown images is a plain one; one that is measured asks for so much more.
    assert [work.name for work in unmeasured] == [work.name for work in plain]
    assert 0 < len(measured) - len(plain) <= 250
    bounds = [sum(work.num_bytes for work in each) for each in (plain, measured)]
    assert bounds[0] < bounds[1] < 2 * bounds[0]
    # What is carried on is what is there.
    larger = [operators.count("test_resnet", "GradCAM()", batch, 64) for batch in (8, 12)]
    carried = operators.carry_on(measured, larger[0], 12)
    assert sum(work.flops for work in carried) == sum(work.flops for work in larger[1])
    num_bytes = [sum(work.num_bytes for work in each) for each in (carried, larger[1])]
    assert num_bytes[0] == pytest.approx(num_bytes[1], rel=0.01)


def test_a_chip_that_is_misspelt(scripts):
    import operators

    with pytest.raises(ValueError, match="chip 'H100' does not exist; did you mean H100 SXM"):
        operators.find_by_name("H100")
    work = operators.Work("mm", flops=989e12, num_bytes=3.35e12, rounded=False)
    assert work.seconds(operators.find_by_name("H100 SXM")) == 2
