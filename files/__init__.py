"""How files are written: whole or not at all, and line by line."""

from litcam.files.lines import append_text, read_rows, whole_lines
from litcam.files.whole import replacing, write_whole

__all__ = ["append_text", "read_rows", "replacing", "whole_lines", "write_whole"]
