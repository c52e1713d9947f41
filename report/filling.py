"""Figures of a document that nobody types: they are put in from what was measured."""

from pathlib import Path

from litcam.files import write_whole

__all__ = ["fill_in"]


def fill_in(page: Path, name: str, text: str) -> None:
    """Replaces what stands between a page's lines `<!-- NAME -->` and `<!-- /NAME -->`.

    Args:
        page: Markdown.
        name: of the place.
        text: Markdown, without the two lines.

    Raises:
        ValueError: the page has no such place.
        OSError: it cannot be read or written.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"page {page} has no lines {begin} and {end} to put the table between")
    write_whole(page, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
