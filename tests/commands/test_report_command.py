"""`litcam report`: which run it takes, and what it says about a wrong word."""

import os

import pytest

from litcam.train import main

METRICS = "epoch,step,val/acc1\n0,9,0.5\n1,19,0.75\n"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("pets/version_0", "pets/version_1", "cars/version_0")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(METRICS)
        os.utime(folder / "metrics.csv", (1e9 + age, 1e9 + age))
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "cars/version_0"),
        (["runs/pets"], "pets/version_1"),
        (["runs/pets/version_0"], "pets/version_0"),
    ],
)
def test_the_newest_run_unless_it_is_named(runs, capsys, words, wanted):
    main(["report", *words])
    page = runs / wanted / "report.html"
    assert list(runs.rglob("report.html*")) == [page]
    assert f"{wanted}/report.html" in capsys.readouterr().out


def test_another_file(runs):
    main(["report", "--out", "page.html"])
    assert (runs.parent / "page.html").is_file() and not [*runs.rglob("report.html")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs/pest"], "run runs/pest does not exist; did you mean runs/pets?"),
        (["--explaind", "x"], "option '--explaind' does not exist; did you mean --explained"),
        (["--explained", "runs"], "folder runs holds no figure.png of `litcam explain`"),
        (["--out", "runs/cars/version_0/metrics.csv/x.html"], "give --out FILE"),
    ],
)
def test_a_wrong_word(runs, capsys, words, line):
    with pytest.raises(SystemExit) as ended:
        main(["report", *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and line in said and len(said.splitlines()) == 1


def test_a_folder_without_a_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "give the folder of a run" in capsys.readouterr().err
