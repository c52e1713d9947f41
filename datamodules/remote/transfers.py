"""Files out of a store, through obstore alone: how each is reached, and what its errors mean."""

import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

# Where its key is found, and what copies a data set there.
_AZURE = (
    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "azcopy copy DST/* {root}",
)
_HTTP = ("check the address", "copy it to the folder that is served as {root}")
SCHEMES = {
    "s3": (
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "aws s3 sync DST {root}",
    ),
    "gs": ("run `gcloud auth application-default login`", "gcloud storage rsync -r DST {root}"),
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "hf": ("set HF_TOKEN", "hf upload OWNER/NAME DST --repo-type dataset"),
    "http": _HTTP,
    "https": _HTTP,
}
# What of a process's environment says who it is and which way it goes.
PREFIXES = ("AWS_", "GOOGLE_", "AZURE_", "HF_")
OTHERS = ("HOME", "LITCAM_STORE_TIMEOUT", "HUGGING_FACE_HUB_TOKEN", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
# Two stores of one address are still two where these differ.
ENDPOINTS = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "HF_ENDPOINT"),
    *("GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
)
STALL = "60s"
BLOCK = 1 << 20

Getter = Callable[[str], Iterator[bytes]]
_ENVIRONMENT = threading.Lock()


def environment_of(process: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process's environment that a store depends on."""
    return {name: value for name, value in process.items() if _matters(name)}


def make_getter(url: str, environment: Mapping[str, str]) -> Getter:
    """A function that yields the bytes of a store's file, named relative to its address.

    Args:
        url: As ``s3://BUCKET/PREFIX``.
        environment: Credentials and endpoints of the process it is for.
    """
    import obstore

    with _in_environment(environment):
        store = _open(url)

    def get(name: str) -> Iterator[bytes]:
        for block in obstore.get(store, name).stream(BLOCK):
            yield bytes(block)

    return get


def explain(error: Exception, root: str, url: str, name: str) -> Exception | None:
    """The error to raise where waiting mends nothing; None where the store may come back."""
    text, status = reason(error), _status(error)
    login, copy = SCHEMES[url.partition(":")[0]]
    if isinstance(error, ModuleNotFoundError):
        return ValueError(f"{root} needs a package: pip install {error.name}")
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return ValueError(f"{root}: the bucket does not exist; check its name and AWS_ENDPOINT_URL")
    if "incorrectly configured region" in text:
        return ValueError(f"{root}: the bucket is elsewhere; set AWS_REGION to its region")
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


def reason(error: Exception) -> str:
    """An error in one line, without what only developers of obstore want to know."""
    head, _, details = str(error).partition("Debug source")
    text = " ".join(head.split())
    _, _, text = text.rpartition(" - ") if "Error performing" in text else ("", "", text)
    deeper = re.findall(r'(?:message|error): "([^"]+)"|(dns error|TimedOut)', details)
    if "HTTP error" in text and deeper:
        text = f"{text}: {next(filter(None, deeper[-1]))}"
    return text or type(error).__name__


def _matters(name: str) -> bool:
    return name.startswith(PREFIXES) or name in OTHERS or name.upper() in PROXIES


@contextmanager
def _in_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Gives this process another's variables; writes none where they are alike already."""
    with _ENVIRONMENT:
        before = environment_of(os.environ)
        _change(before, wanted)
        try:
            yield
        finally:
            _change(wanted, before)


def _change(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in found.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if found.get(name) != value:
            os.environ[name] = value


def _open(url: str) -> Any:
    from obstore import store

    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    options: dict[str, Any] = {"client_options": _client(), "retry_config": _NO_RETRIES}
    if scheme == "s3":
        return store.S3Store(bucket, prefix=prefix or None, **_s3_login(bucket), **options)
    if scheme == "gs":
        return store.GCSStore(bucket, prefix=prefix or None, **_google_login(), **options)
    if scheme == "az":
        return store.AzureStore(bucket, prefix=prefix or None, **_azure_login(), **options)
    if scheme in ("abfs", "abfss"):
        return store.AzureStore.from_url(url, **_azure_login(), **options)
    headers = {}
    if scheme == "hf":
        url, token = _hugging_face(rest), _hugging_face_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
    options["client_options"] = {**_client(), "default_headers": headers}
    return store.HTTPStore(url, **options)


# Waiting is the cache server's own; obstore would wait inside of it, and say nothing.
_NO_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(0)}


def _client() -> Any:
    return {
        "allow_http": True,
        "connect_timeout": "10s",
        "read_timeout": STALL,  # of a stalled transfer; a slow one may take its time
        "timeout": "6h",
        "user_agent": "litcam",
    }


def _s3_login(bucket: str) -> dict[str, Any]:
    region = {} if _is_set("AWS_REGION", "AWS_DEFAULT_REGION") else _region_of(bucket)
    if _is_set("AWS_NO_SIGN_REQUEST"):
        return {"skip_signature": True, **region}
    # Half a key too: obstore says which half is missing.
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE")
    container = "AWS_CONTAINER_CREDENTIALS_"
    if _is_set(*keys, f"{container}FULL_URI", f"{container}RELATIVE_URI"):
        return region
    try:
        # Knows profiles, single sign-on and roles, which obstore does not.
        from boto3.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError:
        if profile := _profile():
            raise ValueError(f"to read {profile} needs a package: pip install boto3") from None
        disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        known = not disabled and _answers("169.254.169.254")
        return region if known else {"skip_signature": True, **region}
    session = Session()
    if session.get_credentials() is None:
        return {"skip_signature": True, **region}
    return {"credential_provider": Boto3CredentialProvider(session), **region}


def _profile() -> str | None:
    if _is_set("AWS_PROFILE"):
        return f"the profile {os.environ['AWS_PROFILE']}"
    places = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))
    files = (Path(os.environ.get(name, f"~/.aws/{own}")).expanduser() for name, own in places)
    return next((str(path) for path in files if path.is_file()), None)


def _region_of(bucket: str) -> dict[str, Any]:
    """Where Amazon keeps a bucket, which it tells anybody."""
    if _is_set("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        return {}
    request = urllib.request.Request(f"https://s3.amazonaws.com/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            region = answer.headers.get("x-amz-bucket-region")
    except urllib.error.HTTPError as error:
        region = error.headers.get("x-amz-bucket-region")
        error.close()
    except OSError:
        return {}
    return {"region": region} if region else {}


def _google_login() -> dict[str, Any]:
    file = Path("~/.config/gcloud/application_default_credentials.json").expanduser()
    keys = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY")
    named = _is_set("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BEARER_TOKEN", *keys)
    known = named or file.is_file() or _answers("metadata.google.internal")
    return {} if known else {"skip_signature": True}


def _azure_login() -> dict[str, Any]:
    secrets = ("KEY", "SECRET", "TOKEN", "CLIENT_ID", "ENDPOINT", "CLI", "FILE", "EMULATOR")
    known = any(name.startswith("AZURE_") and name.endswith(secrets) for name in os.environ)
    return {} if known or _answers("169.254.169.254") else {"skip_signature": True}


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, 80), timeout=1).close()
    except OSError:
        return False
    return True


def _hugging_face(rest: str) -> str:
    """The address of ``datasets/OWNER/NAME[@REVISION][/FOLDER]``."""
    match = re.fullmatch(r"datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?", rest)
    if match is None:
        raise ValueError(f"hf://{rest} is no data set; write hf://datasets/OWNER/NAME")
    end = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{end}/datasets/{match[1]}/resolve/{match[2] or 'main'}{match[3] or ''}"


def _hugging_face_token() -> str:
    """From the environment, or what `hf auth login` left."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH", f"{home}/token")).expanduser()
    return file.read_text().strip() if file.is_file() else ""


def _is_set(*names: str) -> bool:
    return any(os.environ.get(name) for name in names)


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _may_pass(error: Exception, status: int | None) -> bool:
    if status is not None:
        return status >= 500 or status in (408, 425, 429)
    # Refused, cut off, stalled or no such host: each may be the store's network, just now.
    return "HTTP error" in str(error) or isinstance(error, ConnectionError | TimeoutError)
