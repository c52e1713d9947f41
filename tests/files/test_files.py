"""Files are replaced whole or not at all; lines are added whole, and torn ones are passed over."""

import doctest

import pytest

from litcam.files import append_text, read_rows, replacing, whole, whole_lines, write_whole


def test_doctests():
    assert doctest.testmod(whole).failed == 0


def interrupted(file):
    with replacing(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_what_fails_leaves_the_old_file_alone(tmp_path):
    file = tmp_path / "new" / "a.txt"
    write_whole(file, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(file)
    said = r"No space left on device; .*a\.txt stays as it was"
    with pytest.raises(OSError, match=said), replacing(file):
        raise OSError(28, "No space left on device")
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]
    assert file.read_text() == "old"


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("kept")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "kept").read_text() == "kept" and not (tmp_path / "link").is_symlink()


def test_lines_after_a_torn_one_stand_alone(tmp_path):
    file = tmp_path / "lines"
    append_text(file, "one\n")
    with file.open("a") as opened:
        opened.write("tor")
    append_text(file, "two\nthree\n")
    assert whole_lines(file) == ["one", "tor", "two", "three"]
    file.write_bytes(file.read_bytes() + b"x\0\0\n" + b"end without an end")
    assert whole_lines(file) == ["one", "tor", "two", "three"]
    assert whole_lines(tmp_path / "none") == []


@pytest.mark.parametrize("torn", ["1", '1,"2\n', "1,2,3,4\n", "\0\0\n", "1\n", "5,6"])
def test_a_torn_row_takes_no_other_with_it(tmp_path, torn):
    file = tmp_path / "table.csv"
    file.write_text(f"step,loss,lr\r\n0,0.5,\r\n{torn}")
    append_text(file, "2,,0.1\r\n")
    assert read_rows(file) == [{"step": "0", "loss": "0.5"}, {"step": "2", "lr": "0.1"}]
