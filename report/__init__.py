"""One page out of a run's folder: reads files, and needs neither a network nor a server."""

from litcam.report.writing import write_report

__all__ = ["write_report"]
