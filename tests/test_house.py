"""The house rules that a program can check."""

import ast
import configparser
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FOLDERS = sorted({str(path.parent.relative_to(ROOT)) for path in FILES})
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
ALLOWED = {
    "callbacks": {"callbacks", "explain"},
    "report": {"report", "explain"},
    "files": set(),
    "commands": set(ROOMS),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            if node.module == "litcam":
                yield from (f"litcam.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_only_arrows_between_rooms_lead_to_explain_and_files(path):
    room = path.relative_to(ROOT).parts[0]
    found = {name.split(".")[1] for name in imports(path) if name.startswith("litcam.")}
    assert found <= ALLOWED.get(room, {room}) | {"files"}


@pytest.mark.parametrize(
    "path", [path for path in FILES if "explain" in path.relative_to(ROOT).parts]
)
def test_explain_is_plain_pytorch(path):
    assert not [name for name in imports(path) if "lightning" in name]


def test_the_wheel_has_every_room():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = setup["options"]["packages"].split()
    folders = dict(
        line.split(" = ") for line in setup["options"]["package_dir"].split("\n") if line
    )
    names = [f"litcam.{folder.replace('/', '.')}" for folder in FOLDERS]
    assert packages == list(folders) == ["litcam", *names]
    assert list(folders.values()) == [".", *FOLDERS]
    assert (ROOT / "py.typed").exists()
    assert all((ROOT / room / "py.typed").exists() for room in ROOMS)


def test_train_is_the_only_python_file_at_the_root():
    # Every other one would be installed as litcam.<name>.
    assert [path.name for path in ROOT.glob("*.py")] == ["train.py"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_are_short_finished_and_described(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert "TO" + "DO" not in text
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    kinds = ast.FunctionDef, ast.ClassDef
    todo = [node for node in tree.body if isinstance(node, kinds)]
    while todo:
        node = todo.pop()
        if not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                todo += [inner for inner in node.body if isinstance(inner, kinds)]


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "configs"])
def test_a_room_says_what_is_public(room):
    assert "__all__" in (ROOT / room / "__init__.py").read_text()


def test_the_front_door_is_there():
    assert all((ROOT / name).exists() for name in ("README.md", "CHANGELOG.md", "LICENSE"))


def test_no_file_names_a_folder_of_one_machine():
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.:/])/(home|Users|root|work|tmp)/\w")
    for name in filter(None, found.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".cfg", ".toml") and path.exists():
            assert not place.search(path.read_text()), name
