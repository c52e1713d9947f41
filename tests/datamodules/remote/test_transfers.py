import errno
import json
import os
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from cached import CHUNK, HASH, KEY, NAME, one_line
from s3 import refuse, send, set_environment, stall

from litcam.datamodules.remote import fetching, transfers
from litcam.datamodules.remote.fetching import Source, StoreAwayError


@pytest.fixture
def get(tmp_path, monkeypatch):
    """Fetches a file in this process, as the cache server does in its own."""
    monkeypatch.setattr(fetching, "FIRST_DELAY", 0.01)
    warnings = []

    def get(url="s3://bucket/data", name=NAME, patience=300.0):
        source = Source(url, url, transfers.environment_of(os.environ))
        options = {"patience": patience, "warn": warnings.append}
        fetching.fetch(source, tmp_path, name, len(CHUNK), HASH, **options)
        return (tmp_path / name).read_bytes()

    get.folder, get.warnings = tmp_path, warnings
    return get


def left(get):
    return [
        path.name for path in get.folder.rglob("*") if path.is_file() and "moto" not in str(path)
    ]


def test_plain_http(moto, get):
    assert get() == CHUNK


def test_a_bucket_without_a_key(moto, get, monkeypatch):
    # A host with a name, where Amazon's own would carry the bucket in it.
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url.replace("127.0.0.1", "localhost"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError, match=r"access denied .*; set AWS_PROFILE") as caught:
        get("s3://bucket", KEY)
    one_line(caught)
    moto.put(KEY, CHUNK, ACL="public-read")
    assert get("s3://bucket", KEY) == CHUNK


def test_nothing_is_signed_where_that_is_wished(scripted, get, monkeypatch):
    scripted.answers += [send(CHUNK)]
    get()
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    get()
    assert ["Authorization" in headers for headers in scripted.headers] == [True, False] or [
        "authorization" in headers for headers in scripted.headers
    ] == [True, False]
    assert scripted.asked == [f"/bucket/{KEY}"] * 2


def test_a_profile(scripted, get, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = profiled\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    scripted.answers += [send(CHUNK)]
    get()
    assert "Credential=profiled/" in str(scripted.headers)
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    with pytest.raises(ValueError, match="the profile mine needs a package: pip install boto3"):
        get()
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(ValueError, match="credentials needs a package: pip install boto3"):
        get()
    file.unlink()
    scripted.headers.clear()
    get()
    assert "profiled" not in str(scripted.headers)


def test_half_a_key(moto, get, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OSError, match=r"cannot be fetched: .*Missing SecretAccessKey") as caught:
        get()
    one_line(caught)


def test_a_damaged_file_in_the_bucket(moto, get):
    before = moto.requests(KEY)
    moto.put(KEY, CHUNK[:-1] + b"x")
    with pytest.raises(OSError, match=r"s3://bucket/data/train/chunk-0-0.bin is damaged") as caught:
        get()
    assert HASH in one_line(caught) and "copy it there again" in one_line(caught)
    assert moto.requests(KEY) == before + 2
    assert left(get) == []
    moto.put(KEY, CHUNK[:-1])
    with pytest.raises(OSError, match=f"has {len(CHUNK) - 1} bytes instead of {len(CHUNK)}"):
        get()
    moto.put(KEY, CHUNK * 20)
    with pytest.raises(OSError, match=f"bytes or more instead of {len(CHUNK)}|or more bytes"):
        get()


def test_what_is_not_there(moto, get):
    with pytest.raises(FileNotFoundError, match=r"data/val/chunk-9-9.bin is missing") as caught:
        get(name="val/chunk-9-9.bin")
    one_line(caught)
    with pytest.raises(
        FileNotFoundError, match=r"raw has no litcam.json; .*sync DST s3://bucket/raw\)"
    ):
        get("s3://bucket/raw", "litcam.json")
    with pytest.raises(ValueError, match=r"no-such-bucket/data: .*bucket does not exist") as caught:
        get("s3://no-such-bucket/data", "litcam.json")
    one_line(caught)


def test_hiccups_are_waited_for_and_not_by_obstore_too(scripted, get):
    cut = send(CHUNK[:1000], length=len(CHUNK))
    scripted.answers += [refuse(503, "SlowDown"), refuse(500), refuse(429), cut, send(CHUNK)]
    assert get() == CHUNK
    assert len(scripted.asked) == 5


def test_a_stalled_transfer_is_cut_off(scripted, get, monkeypatch):
    monkeypatch.setattr(transfers, "STALL", "500ms")
    scripted.answers += [stall(CHUNK[:200_000], len(CHUNK)), send(CHUNK)]
    assert get() == CHUNK


def test_a_transfer_that_spoils_a_file_is_repeated(scripted, get):
    scripted.answers += [send(b"x" * len(CHUNK)), send(CHUNK)]
    assert get() == CHUNK


def test_a_refusal_is_one_line(scripted, get):
    scripted.answers += [refuse(403, "AccessDenied")]
    with pytest.raises(PermissionError, match="no way") as caught:
        get()
    assert "Debug" not in one_line(caught)
    assert len(scripted.asked) == 1


def test_a_bucket_elsewhere(scripted, get):
    scripted.answers += [refuse(301, "PermanentRedirect")]
    with pytest.raises(ValueError, match="the bucket is elsewhere; set AWS_REGION"):
        get()


def test_a_store_that_stays_away(get, monkeypatch):
    set_environment(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr(fetching, "WARN_AFTER", 0.1)
    with pytest.raises(StoreAwayError, match=r"data/.* did not answer for \d+ s .*refused") as away:
        get(patience=0.5)
    assert "--ckpt_path last" in one_line(away)
    assert len(get.warnings) == 1 and "the store does not answer" in get.warnings[0]


def test_a_full_disk(scripted, get, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    scripted.answers += [send(CHUNK)]
    monkeypatch.setattr(fetching, "_write", full)
    with pytest.raises(OSError, match=r"No space left on device; .* GB free.* cache_gb") as caught:
        get()
    assert str(get.folder) in one_line(caught)
    assert left(get) == []


def test_a_cache_that_cannot_be_written(scripted, get):
    (get.folder / "train").write_text("")
    with pytest.raises(OSError, match=r"takes no more files .*another cache_dir") as caught:
        get()
    one_line(caught)


def test_web_pages(scripted, get):
    scripted.answers += [send(CHUNK)]
    assert get(f"{scripted.url}/some/folder") == CHUNK
    assert scripted.asked == [f"/some/folder/{NAME}"]


def test_hugging_face(scripted, get, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", scripted.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    scripted.answers += [send(CHUNK)]
    assert get("hf://datasets/me/photos") == CHUNK
    assert get("hf://datasets/me/photos@v2/small") == CHUNK
    front = "/datasets/me/photos/resolve"
    assert scripted.asked == [f"{front}/main/{NAME}", f"{front}/v2/small/{NAME}"]
    assert "Bearer hf_secret" in str(scripted.headers[0])
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_logged_in\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    get("hf://datasets/me/photos")
    assert "Bearer hf_logged_in" in str(scripted.headers[-1])
    scripted.answers[:] = [refuse(401)]
    with pytest.raises(PermissionError, match=r"access denied .*; set HF_TOKEN") as caught:
        get("hf://datasets/me/photos")
    assert "hf_logged_in" not in one_line(caught)
    with pytest.raises(ValueError, match="hf://photos is no data set"):
        get("hf://photos")


def test_google(scripted, get, monkeypatch, tmp_path):
    login = {"gcs_base_url": scripted.url, "disable_oauth": True}
    login |= {"client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "login.json").write_text(json.dumps(login))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "login.json"))
    scripted.answers += [send(CHUNK)]
    assert get("gs://bucket/data") == CHUNK
    assert unquote(scripted.asked[0]) == f"/bucket/{KEY}"
    scripted.answers[:] = [refuse(403)]
    with pytest.raises(PermissionError, match=r"gs://bucket/data/.*: access .*gcloud auth"):
        get("gs://bucket/data")


@pytest.mark.parametrize("url", ["az://box/data", "abfss://box@me.dfs.core.windows.net/data"])
def test_azure(scripted, get, monkeypatch, url):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "me")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", scripted.url)
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    scripted.answers += [send(CHUNK)]
    assert get(url) == CHUNK
    assert scripted.asked == [f"/box/{KEY}"]


def test_an_environment_is_given_back(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with transfers._in_environment({"HF_TOKEN": "theirs"}):
        assert os.environ["HF_TOKEN"] == "theirs" and "AWS_PROFILE" not in os.environ
    assert os.environ["AWS_PROFILE"] == "mine" and "HF_TOKEN" not in os.environ


def test_leftovers():
    writer = Path(f"a.bin.{fetching.node()}-{os.getpid()}-3.part")
    now = fetching.time.time()
    assert not fetching.is_leftover(writer, now)
    assert fetching.is_leftover(writer.with_name(f"a.bin.{fetching.node()}-99999999-3.part"), now)
    elsewhere = writer.with_name("a.bin.01234567-99999999-3.part")
    assert not fetching.is_leftover(elsewhere, now)
    assert fetching.is_leftover(elsewhere, now - 3600)
