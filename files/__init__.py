"""How files are written: whole or not at all, and line by line."""

from litcam.files.lines import append_text, read_rows, whole_lines
from litcam.files.whole import replacing, sync, write_whole

__all__ = ["append_text", "read_rows", "replacing", "sync", "whole_lines", "write_whole"]
