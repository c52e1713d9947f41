"""One file out of a store: S3 through boto3, others through LitData; what their errors mean."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

# What fetches from there, where it finds its key, and what copies a data set there.
SCHEMES = {
    "s3": (
        "boto3",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "aws s3 sync DST {root}",
    ),
    "gs": (
        "google-cloud-storage",
        "run `gcloud auth application-default login`",
        "gcloud storage rsync -r DST {root}",
    ),
    "hf": ("huggingface_hub", "set HF_TOKEN", "hf upload OWNER/NAME DST --repo-type dataset"),
}

Getter = Callable[[str, Path], None]


def make_getter(url: str) -> Getter:
    """A function that writes a file of a store, named relative to its address, to a path."""
    return _s3_getter(url) if url.startswith("s3://") else _litdata_getter(url)


def explain(error: Exception, root: str, url: str, name: str) -> Exception | None:
    """The error to raise where waiting mends nothing; None where the store may come back."""
    text, status = " ".join(str(error).split()), _status(error)
    package, login, copy = SCHEMES[url.partition(":")[0]]
    if isinstance(error, ModuleNotFoundError):
        return ValueError(f"{root} needs a package: pip install litdata {package}")
    if "bucket does not exist" in text:
        return ValueError(f"{root}: {text}; check its name and AWS_ENDPOINT_URL")
    if status == 404 or isinstance(error, FileNotFoundError):
        if name == "litcam.json":
            return FileNotFoundError(
                f"{root} has no litcam.json; make one with `litcam convert SRC DST` "
                f"and copy DST there ({copy.format(root=root)})"
            )
        return FileNotFoundError(f"{url}/{name} is missing; copy it there again")
    if status in (401, 403):
        return PermissionError(f"{url}/{name}: access denied ({text}); {login}")
    if _may_pass(error, status):
        return None
    return OSError(f"{url}/{name} cannot be fetched: {text}; check the address, or {login}")


def _s3_getter(url: str) -> Getter:
    # Not LitData's: through obstore it refuses the plain http of a store in one's own network.
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    session = boto3.session.Session()
    public = os.environ.get("AWS_NO_SIGN_REQUEST") or session.get_credentials() is None
    config = Config(
        signature_version=UNSIGNED if public else None,
        connect_timeout=10,
        read_timeout=60,
        retries={"total_max_attempts": 1},  # waiting is this module's own
        response_checksum_validation="when_required",  # and so is checking
    )
    client = session.client("s3", config=config)

    def get(name: str, part: Path) -> None:
        body = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}".lstrip("/"))["Body"]
        with closing(body), part.open("wb") as file:
            shutil.copyfileobj(body, file, 1 << 20)

    return get


def _litdata_getter(url: str) -> Getter:
    from litdata.streaming.downloader import get_downloader

    downloader = get_downloader(url, "", [])

    def get(name: str, part: Path) -> None:
        downloader.download_file(f"{url}/{name}", str(part))
        if not part.exists():
            # LitData passes over some errors of Hugging Face's client in silence.
            raise ConnectionError("nothing came back")

    return get


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of boto3, Google's or Hugging Face's client."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    places = ((error, "code"), (response, "status_code"))
    found = (getattr(place, name, None) for place, name in places)
    return next((int(status) for status in found if isinstance(status, int)), None)


def _may_pass(error: Exception, status: int | None) -> bool:
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    if status is not None:
        return status >= 500 or status in (408, 425, 429)
    broken = (OSError, NoConnection, HTTPClientError, IncompleteReadError)
    return isinstance(error, broken) or bool(getattr(error, "retryable", False))
