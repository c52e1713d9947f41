"""What looks like a key, and what does not."""

import pytest

from litcam.callbacks.places.redaction import redact, redact_words


@pytest.mark.parametrize(
    "words",
    [
        ["--data.root", "s3://me:SECRET@host/photos"],
        ["--data.root=s3://me:SECRET@host/photos"],
        ["--data.root", "https://host/photos?X-Amz-Signature=SECRET&x=1"],
        ["--model.api_key", "SECRET"],
        ["--model.api-key=SECRET"],
        ["--trainer.logger+", '{"init_args": {"password": "SECRET"}}'],
        ["--trainer.logger", "{init_args: {hf_token: SECRET}}"],
        ["--model", "glpat-SECRET0000000000000000"],
    ],
)
def test_words_of_a_command(words):
    assert "SECRET" not in str(redact_words(["fit", *words]))


@pytest.mark.parametrize(
    "words",
    [
        ["--model.class_token", "true", "--seed_everything", "0"],
        ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "val/acc1"],
        ["--data.root", "hf://datasets/owner/name", "--model.num_tokens=196"],
        ["--model.backbone", "vit_base_patch16_224", "--config", "finetune.yaml"],
        ["--monkey", "business", "--trainer.callbacks", "{class_path: GradCAM, name: keys}"],
    ],
)
def test_other_words_stay(words):
    assert redact_words(words) == words


def test_values_of_the_environment(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    assert redact({"notes": ["with correct horse battery"]}) == {"notes": ["with (removed)"]}


SECRETS = [
    "0123456789abcdef" * 3,
    "wandb_v1_abc",
    "AKIAABCDEFGHIJKLMNOP",
    f"hf_{'a' * 30}",
    f"ghp_{'b' * 36}",
    f"sk-{'c' * 40}",
    "s3://me:pass@host/photos",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_key_is_removed(secret):
    kept = redact({"model": [{"encoder": secret}], "api_key": "plain", "lr": 0.1})
    assert kept["api_key"] == "(removed)"
    assert kept["lr"] == 0.1
    assert secret not in str(kept)
    assert "(removed)" in kept["model"][0]["encoder"]
