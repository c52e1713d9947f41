"""Names that stay inside their folder, and what kind of disk a folder is on."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

NETWORKS = frozenset(
    [
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs"),
        *("9p", "glusterfs", "pvfs2", "orangefs", "wekafs", "fuse.sshfs", "fuse.glusterfs"),
        *("fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.mountpoint-s3"),
    ]
)
# The folder itself, absolute, of another drive, a way upwards, on any system; what none can name.
_LEADS_OUT = re.compile(r"[./\\]*$|[/\\]|[A-Za-z]:|(?s:.*)\0|(?s:.*[/\\])?\.\.(?:$|[/\\])")
MOUNTS = Path(os.environ.get("LITCAM_MOUNTS", "/proc/mounts"))


def is_inside(name: str) -> bool:
    r"""Whether a name stays in its folder, on this and any other system.

    >>> [is_inside(name) for name in ("a/..b.jpg", "a/../../b", r"a\..\b", "/a", "c:a", ".", "")]
    [True, False, False, False, False, False, False]
    """
    return _LEADS_OUT.match(name) is None


def check_name(name: str, root: str, folder: Path | None = None) -> None:
    """Refuses a name that leads out of its folder.

    Args:
        name: Relative to the folder, as a data set gives it.
        root: What holds the data set, for the message.
        folder: Where the file lies; links in it must not lead out either.

    Raises:
        ValueError: If it does.
    """
    if not is_inside(name):
        raise ValueError(
            f"{root} names a file {name!r:.200}, which is not inside of it; "
            "do not use this data set"
        )
    if folder is not None:
        inside, at = folder.resolve(), (folder / name).resolve()
        if not at.is_relative_to(inside):
            raise ValueError(
                f"{folder / name} is a link that leads out of the folder, to {at}; "
                "put the file itself there"
            )


def network_folder(folder: Path) -> str:
    """The kind of network file system that a folder is on, or nothing."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    at, best, kind = folder.resolve(), -1, ""
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        # Of two mounts at one place the later hides the earlier.
        if at.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind if kind in NETWORKS else ""


def unknown_scheme(root: str, scheme: str, known: list[str]) -> ValueError:
    """The error for an address that nothing here understands."""
    close = get_close_matches(scheme, known, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(f'{name}://' for name in close)}?)" if close else ""
    names = ", ".join(f"{name}://" for name in known)
    return ValueError(f"root {root} is neither a folder nor one of {names}{hint}")
