"""No key, token or password appears in what is written."""

import pytest

from dq.tracking.record.secrets import (
    HIDDEN,
    hide,
    hide_in_text,
    hide_in_words,
    is_secret_name,
)

SECRET = [
    "api_key", "wandb_api_key", "WANDB_API_KEY", "hub.token", "accessToken", "auth-token",
    "password", "db_password", "passwd", "secret", "client_secret", "aws.secret_access_key",
    "AWS_ACCESS_KEY_ID", "credentials", "privateKey", "authorization", "access_key_secret", "pwd",
    "db_pwd", "api_keys", "passwords", "secrets", "auth_tokens", "connection_string", "secretId",
    "account_key", "AccountKey", "signing_key", "ssh_key", "HFTOKEN", "GITHUB_PAT", "auth",
]  # fmt: skip
PLAIN = [
    "num_tokens", "token_size", "keys", "key", "keypoints", "secretary", "passes", "authors",
    "meta_keys", "special_tokens", "tokens", "fork", "optimizer.lr", "tokenizer",
    "greater_keys", "keep_ratio",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert hide({"a": [{name: "tell nobody"}]}) == {"a": [{name: HIDDEN}]}


@pytest.mark.parametrize("name", PLAIN)
def test_names_of_other_settings(name: str) -> None:
    assert not is_secret_name(name)
    assert hide({name: "value"}) == {name: "value"}


def test_other_types_are_kept() -> None:
    values = {"token": None, "secret": True, "num_token": 3, "api_key": "", "mean": (1.0, 2.0)}
    assert hide(values) == values


@pytest.mark.parametrize("name", ["password", "db_pwd", "passcode"])
def test_a_password_may_be_a_number(name: str) -> None:
    assert hide({name: 4711}) == {name: HIDDEN}


def test_everything_inside_a_secret_section_is_hidden() -> None:
    inner = {"type": "Login", "user": "x", "more": [{"value": "x"}, ("x",)], "retries": 3}
    left = {"type": "Login", "user": HIDDEN, "more": [{"value": HIDDEN}, (HIDDEN,)], "retries": 3}
    assert hide({"a": {"credentials": inner}}) == {"a": {"credentials": left}}
    words = ["--cfg-options", "credentials.user=x", "a.hf_token.value=x", "a.key=x"]
    assert hide_in_words(words)[1:] == [
        f"credentials.user={HIDDEN}", f"a.hf_token.value={HIDDEN}", "a.key=x",
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["0123456789abcdef" * 2, "Zm9vYmFy+a1/Zm9vYmFyMDEy=="])
def test_a_random_key_is_hidden_and_a_word_is_not(value: str) -> None:
    assert hide({"login": {"key": value}}) == {"login": {"key": HIDDEN}}
    assert hide({"sort_key": "a_long_name_of_a_column"}) == {"sort_key": "a_long_name_of_a_column"}
    assert hide({"commit": "0123456789abcdef" * 2}) == {"commit": "0123456789abcdef" * 2}


@pytest.mark.parametrize(
    "value",
    [
        "hooks.slack.com/services/T0ABCDEFG/B0ABCDEFG/abcdefghijkl",
        "discord.com/api/webhooks/123456789/abcdefghijklmnopqrstuvwxyz",
        "hf_" + "a1" * 12,
        "ghp_" + "b" * 36,
        "AKIA" + "Q" * 16,
        "sk-" + "c" * 24,
        "local-" + "0" * 40,
        "ASIA" + "Q" * 16,
        "AIza" + "b" * 35,
        "sk_live_" + "d" * 24,
        "npm_" + "e" * 36,
        "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_keys_are_known_by_their_shape(value: str) -> None:
    assert hide({"anything": f"before {value} after"}) == {"anything": f"before {HIDDEN} after"}


@pytest.mark.parametrize(
    "text",
    [
        "work_dirs/mask-rcnn_r50_fpn_1x_coco_with_a_long_name/latest.pth",
        "/data/shelf_objects0123456789012345678901234567/x.json",
        "task-aligned_assigner_with_everything_in_it",
        "dict(type='Adam', lr=0.1)",
        "https://host/x.pth?download=1&version=3",
    ],
)
def test_what_only_looks_like_a_key_is_kept(text: str) -> None:
    assert hide({"load_from": text}) == {"load_from": text}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("hub=dict(token='abc', rev='x')", f"hub=dict(token='{HIDDEN}', rev='x')"),
        ('{"api_key": "abc", "a": "b"}', f'{{"api_key": "{HIDDEN}", "a": "b"}}'),
        ("https://h/x?v=1&token=abc", f"https://h/x?v=1&token={HIDDEN}"),
        ("https://h/x?X-Amz-Signature=ab%2F&v=1", f"https://h/x?X-Amz-Signature={HIDDEN}&v=1"),
        ("Bearer abcdefghij", f"Bearer {HIDDEN}"),
        ("host=h password=abc user=u", f"host=h password={HIDDEN} user=u"),
        ("Server=h;Password=abc;Port=1", f"Server=h;Password={HIDDEN};Port=1"),
        ("AccountName=a;AccountKey=ab/c+d==;x=1", f"AccountName=a;AccountKey={HIDDEN};x=1"),
        ("export HF_TOKEN=abc && run", f"export HF_TOKEN={HIDDEN} && run"),
        ("{token: abc, rev: x}", f"{{token: {HIDDEN}, rev: x}}"),
        ("{'api_key': b'abc'}", f"{{'api_key': b'{HIDDEN}'}}"),
        ("curl -H 'Authorization: token abc' x", f"curl -H 'Authorization: {HIDDEN}' x"),
        ("X-Api-Key: abc", f"X-Api-Key: {HIDDEN}"),
        ("use_cls_token=True, dist_token=None", "use_cls_token=True, dist_token=None"),
    ],
)
def test_assignments_inside_a_text(text: str, left: str) -> None:
    assert hide_in_text(text) == left
    assert hide_in_words(["--cfg-options", f"a.b={text}"])[1] == f"a.b={left}"


def test_passwords_inside_addresses() -> None:
    text = hide_in_text("s3 at https://me:hunter2@host:9000/bucket and https://host/a:b@c")
    assert text == f"s3 at https://me:{HIDDEN}@host:9000/bucket and https://host/a:b@c"
    assert hide_in_text("mongodb://me:p@ss@host/db") == f"mongodb://me:{HIDDEN}@host/db"
    assert hide_in_text(f"https://{'a1' * 12}@host/x") == f"https://{HIDDEN}@host/x"
    assert hide_in_text("ssh://git@host:22/x.git") == "ssh://git@host:22/x.git"


def test_command_lines() -> None:
    words = ["run", "c.py", "--token", "abc", "--api-key=abc", "--cfg-options", "hub.token=abc",
             "data_root=/x", "f" * 40, "--seed", "3"]  # fmt: skip
    assert hide_in_words(words) == [
        "run", "c.py", "--token", HIDDEN, f"--api-key={HIDDEN}", "--cfg-options",
        f"hub.token={HIDDEN}", "data_root=/x", HIDDEN, "--seed", "3",
    ]  # fmt: skip
