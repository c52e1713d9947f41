"""What looks like a key is taken out of everything that is written down or sent."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

REMOVED = "(removed)"
SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password|passwd|credentials?)s?$")
# What keys of W&B, AWS, Hugging Face, GitHub, GitLab, OpenAI, Google, Slack and JSON web tokens
# look like.
SECRET = re.compile(
    r"\b([0-9a-f]{40,}|wandb_v1_\w+|(AKIA|ASIA)[0-9A-Z]{16}|hf_\w{20,}|gh[pousr]_\w{20,}|"
    r"github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[\w-]{20,}|AIza[\w-]{30,}|xox[a-z]-[\w-]{10,}|"
    r"eyJ[\w-]+\.[\w-]+\.[\w-]+)"
)
# What no key is, as in `--model.class_token true`.
PLAIN = re.compile(r"(?i)true|false|null|none|\d{1,6}")
# Shorter values in the environment may be any word.
SHORTEST = 8


def redact(tree: Any, name: str = "") -> Any:
    """A config without anything that looks like a key, or is one in the environment.

    >>> redact({"api_key": "x", "root": "s3://me:pass@host/photos"})
    {'api_key': '(removed)', 'root': 's3://(removed)@host/photos'}
    """
    if isinstance(tree, dict):
        return {key: redact(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact(value, name) for value in tree]
    if isinstance(tree, str | os.PathLike) and str(tree):
        return REMOVED if _is_secret(name) else redact_text(str(tree))
    return tree


def redact_text(text: str) -> str:
    """The same of a text, such as an address or a setting in YAML.

    >>> redact_text("{root: 'https://host/x?token=abc', password: abc}")
    "{root: 'https://host/x?token=(removed)', password: (removed)}"
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _is_secret(name):
            text = text.replace(value, REMOVED)
    text = re.sub(r"://[^/\s]+@", f"://{REMOVED}@", text)
    # As in the query of an address, and as in YAML.
    names = r"(?:key|token|secret|password|passwd|credentials?)s?"
    text = re.sub(rf"(?i)([?&;][\w-]*(?:{names}|sig|signature)=)[^&;\s'\"]+", rf"\1{REMOVED}", text)
    text = re.sub(rf"(?i)(\b(?:\w*_)?{names}['\"]?\s*:\s+)[^\s,}}]+", rf"\1{REMOVED}", text)
    return SECRET.sub(REMOVED, text)


def redact_words(words: Sequence[str]) -> list[str]:
    """A command line without anything that looks like a key.

    >>> redact_words(["fit", "--data.token", "abc", "--data.password=abc", "--seed", "1"])
    ['fit', '--data.token', '(removed)', '--data.password=(removed)', '--seed', '1']
    """
    return list(_redact_words(words))


def _redact_words(words: Sequence[str]) -> Iterator[str]:
    name = ""
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            yield _redact_value(word, name)
            name = ""
        elif equals:
            yield f"{option}={_redact_value(value, _last_part(option))}"
            name = ""
        else:
            yield redact_text(word)
            name = _last_part(option)


def _redact_value(word: str, name: str) -> str:
    return word if PLAIN.fullmatch(word) else str(redact(word, name))


def _last_part(option: str) -> str:
    return option.lstrip("-").rstrip("+").rpartition(".")[2].replace("-", "_")


def _is_secret(name: str) -> bool:
    return SECRET_NAME.search(name.lower()) is not None
