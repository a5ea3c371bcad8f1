"""Keep keys, tokens and passwords out of everything that is written, sent or exported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "<hidden>"
# Names whose values are secret, as whole words of a name such as `wandb_api_key`.
_NAME = re.compile(
    r"(?:^|[._\-\s])(?:api_?keys?|access_?keys?(?:_?(?:id|secret))?|secrets?(?:_?(?:key|id))?"
    r"|private_?keys?|token|(?:api|access|auth|refresh|bearer)_?tokens?|passw(?:or)?ds?|pwd"
    r"|passphrase|passcode|credentials?|bearer|authorization|cookie|connection_?string|wandb_?key"
    r"|\w+_(?:token|secret|passw(?:or)?d|pwd|api_?key|access_?key))$",
    re.IGNORECASE,
)
# Values that are secret under any name: tokens of services have a recognizable shape.
_VALUE = re.compile(
    # Only at the start of a word: mask-rcnn_r50_fpn_1x_coco contains "sk-".
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|glpat-[\w\-]{20,}|A[KS]IA[A-Z0-9]{16}|AIza[\w\-]{35}|sk-[A-Za-z0-9_\-]{20,}"
    r"|[sr]k_live_[A-Za-z0-9]{20,}|xox[abprs]-[\w\-]{10,}|npm_[A-Za-z0-9]{36}|pypi-[\w\-]{30,}"
    r"|dckr_pat_[\w\-]{20,}|ya29\.[\w\-]{20,}|local-[0-9a-f]{40}|wandb_v\d_\w{40,}"
    r"|eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]+)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
# Inside a text: a dict written as text, a URL's query, a header.
_QUERY = re.compile(r"(?<=[?&])([\w\-]+)=([^&#\s'\"]+)")
_SIGNED = ("sig", "signature", "x-amz-signature", "x-amz-security-token", "x-goog-signature")
_INNER = re.compile(r"""(?<![\w.])(['"]?)([\w.\-]+)\1(\s*[:=]\s*)(['"])(.+?)\4""")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w\-.~+/]{8,}=*", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)(?=@)")
_ASSIGNED = re.compile(r"""^(?P<name>-{0,2}[\w.\-]+)(?P<sign>=|:\s*)(?P<value>.+)$""", re.DOTALL)
_WANDB_KEY = re.compile(r"[0-9a-f]{40}")


def is_secret_name(name: str) -> bool:
    """Return whether a setting of this name is a secret, however its words are joined."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_")
    return _NAME.search(parts) is not None


def hide(values: Any, name: str = "") -> Any:
    """Return nested values with `HIDDEN` in place of each secret.

    A value is secret if a name on its path is a secret's, or if it has the shape of a key. Numbers,
    None and booleans are kept: they are never secrets.

    Args:
        values: A config, a section of one, or a single value.
        name: The name of the value.
    """
    if isinstance(values, Mapping):
        return {key: hide(item, str(key)) for key, item in values.items()}
    if isinstance(values, str):
        return HIDDEN if values and is_secret_name(name) else hide_in_text(values)
    if isinstance(values, list | tuple):
        found = [hide(item, name) for item in values]
        return found if isinstance(values, list) else tuple(found)
    return values


def hide_in_text(text: str) -> str:
    """Return a text with `HIDDEN` in place of keys and of passwords in URLs.

    Assignments inside it count too, as in ``hub=dict(token='x')``.
    """
    text = _IN_ADDRESS.sub(rf"\1:{HIDDEN}", _VALUE.sub(HIDDEN, text))
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _QUERY.sub(_without_signature, text)
    return _INNER.sub(_without_assigned, text)


def _without_signature(found: re.Match[str]) -> str:
    is_secret = is_secret_name(found[1]) or found[1].lower() in _SIGNED
    return f"{found[1]}={HIDDEN}" if is_secret else found[0]


def _without_assigned(found: re.Match[str]) -> str:
    quote, name, sign, value_quote, _ = found.groups()
    if not is_secret_name(name):
        return found[0]
    return f"{quote}{name}{quote}{sign}{value_quote}{HIDDEN}{value_quote}"


def hide_in_words(words: Sequence[str]) -> list[str]:
    """Return words without secrets: ``--token X``, ``--token=X``, ``a.token=X``."""
    found: list[str] = []
    takes_next = False
    for word in words:
        assigned = _ASSIGNED.match(word)
        if takes_next and not word.startswith("-"):
            found.append(HIDDEN)
        elif assigned and is_secret_name(assigned["name"].lstrip("-")):
            found.append(f"{assigned['name']}{assigned['sign']}{HIDDEN}")
        else:
            found.append(HIDDEN if _WANDB_KEY.fullmatch(word) else hide_in_text(word))
        takes_next = word.startswith("--") and not assigned and is_secret_name(word.lstrip("-"))
    return found
