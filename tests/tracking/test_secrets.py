"""No key, token or password is left in what is written."""

import pytest

from dq.tracking.secrets import (
    HIDDEN,
    hide,
    hide_in_text,
    hide_in_words,
    is_secret_name,
)

SECRET = [
    "api_key", "wandb_api_key", "WANDB_API_KEY", "hub.token", "accessToken", "auth-token",
    "password", "db_password", "passwd", "secret", "client_secret", "aws.secret_access_key",
    "AWS_ACCESS_KEY_ID", "credentials", "privateKey", "authorization",
]  # fmt: skip
PLAIN = [
    "num_tokens", "token_size", "keys", "key", "keypoints", "secretary", "passes", "authors",
    "meta_keys", "optimizer.lr", "tokenizer", "greater_keys", "keep_ratio",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert hide({"a": [{name: "tell nobody"}]}) == {"a": [{name: HIDDEN}]}


@pytest.mark.parametrize("name", PLAIN)
def test_names_of_other_settings(name: str) -> None:
    assert not is_secret_name(name)
    assert hide({name: "value"}) == {name: "value"}


def test_what_is_no_text_is_kept() -> None:
    values = {"token": None, "secret": True, "password": 3, "api_key": "", "mean": (1.0, 2.0)}
    assert hide(values) == values


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "a1" * 12,
        "ghp_" + "b" * 36,
        "AKIA" + "Q" * 16,
        "sk-" + "c" * 24,
        "local-" + "0" * 40,
    ],
)
def test_keys_are_known_by_their_shape(value: str) -> None:
    assert hide({"anything": f"before {value} after"}) == {"anything": f"before {HIDDEN} after"}


def test_passwords_inside_addresses() -> None:
    text = hide_in_text("s3 at https://me:hunter2@host:9000/bucket and https://host/a:b@c")
    assert text == f"s3 at https://me:{HIDDEN}@host:9000/bucket and https://host/a:b@c"


def test_command_lines() -> None:
    words = ["run", "c.py", "--token", "abc", "--api-key=abc", "--cfg-options", "hub.token=abc",
             "data_root=/x", "f" * 40, "--seed", "3"]  # fmt: skip
    assert hide_in_words(words) == [
        "run", "c.py", "--token", HIDDEN, f"--api-key={HIDDEN}", "--cfg-options",
        f"hub.token={HIDDEN}", "data_root=/x", HIDDEN, "--seed", "3",
    ]  # fmt: skip
