"""Keep keys, tokens and passwords out of everything that is written, sent or exported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "<hidden>"
# Names whose values are secret, as whole words of a name such as `wandb_api_key`.
_NAME = re.compile(
    r"(?:^|[._\-\s])(?:api_?keys?|access_?keys?(?:_?(?:id|secret))?|secrets?(?:_?(?:key|id))?"
    r"|(?:private|account|signing|encryption|shared_?access|ssh|master|storage|subscription"
    r"|license)_?keys?|token|(?:api|access|auth|refresh|bearer)_?tokens?|passw(?:or)?ds?|pwd"
    r"|passphrase|passcode|credentials?|(?:basic_?)?auth|bearer|authorization|cookie|connection_?string|wandb_?key"
    r"|(?:git|github|gitlab|azure)_?pat|\w+_(?:token|secret|passw(?:or)?d|pwd|api_?key|access_?key)"
    r"|\w+(?:token|secret|password|passwd|apikey))$",
    re.IGNORECASE,
)
# Under these names a number is secret too.
_NUMBER = re.compile(r"passw(?:or)?ds?$|pwd$|passphrase$|passcode$", re.IGNORECASE)
# Under a name that ends in `key`, a text of this form is secret: it looks random, not like a word.
_RANDOM = re.compile(r"(?=\D*\d)(?=.*[A-Za-z])[A-Za-z0-9+/_\-]{20,}={0,2}")
# Values that are secret under any name: tokens of services have a recognizable shape.
_VALUE = re.compile(
    # Only at the start of a word: mask-rcnn_r50_fpn_1x_coco contains "sk-".
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|glpat-[\w\-]{20,}|A[KS]IA[A-Z0-9]{16}|AIza[\w\-]{35}|sk-[A-Za-z0-9_\-]{20,}"
    r"|[sr]k_live_[A-Za-z0-9]{20,}|xox[abprs]-[\w\-]{10,}|npm_[A-Za-z0-9]{36}|pypi-[\w\-]{30,}"
    r"|dckr_pat_[\w\-]{20,}|ya29\.[\w\-]{20,}|local-[0-9a-f]{40}|wandb_v\d_\w{40,}"
    r"|eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]+"
    r"|hooks\.slack\.com/services/[\w/\-]{20,}|discord(?:app)?\.com/api/webhooks/[\w/\-]{20,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
# Inside a text: a dict written as text, a URL's query, a header.
_QUERY = re.compile(r"(?<=[?&])([\w\-]+)=([^&#\s'\"]+)")
_SIGNED = ("sig", "signature", "x-amz-signature", "x-amz-security-token", "x-goog-signature")
# A name before its value, and the value: in quotes, or up to the next separator.
_BEFORE = re.compile(r"""(?<![\w.])(['"]?)([\w.\-]+)\1\s*[:=]\s*""")
_QUOTED = re.compile(r"""[bfru]{0,2}(?P<quote>['"])(?P<value>.+?)(?P=quote)""", re.IGNORECASE)
_BARE = re.compile(r"""(?!(?:True|False|None|[\d.]+)(?![\w.]))(?P<value>[^\s;&,'"(){}\[\]<>]+)""")
_HEADER = re.compile(r"""(?P<value>[^\s'"<][^'"\n<]*)""")
_HEADERS = ("authorization", "cookie")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w\-.~+/]{8,}=*", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)([^\s/@:]*):([^\s/]+)(?=@)|(?<=://)[^\s/@:]{16,}(?=@)")
_ASSIGNED = re.compile(r"""^(?P<name>-{0,2}[\w.\-]+)(?P<sign>=|:\s*)(?P<value>.+)$""", re.DOTALL)
_WANDB_KEY = re.compile(r"[0-9a-f]{40}")


def is_secret_name(name: str) -> bool:
    """Return whether a setting of this name is a secret, however its words are joined."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_")
    return _NAME.search(parts) is not None


def is_secret_path(path: str) -> bool:
    """Return whether a dotted name or one of the sections on its way is a secret's."""
    return any(map(is_secret_name, path.split(".")))


def hide(values: Any, name: str = "", *, secret: bool = False) -> Any:
    """Return nested values with `HIDDEN` in place of each secret.

    A value is secret if a name on its path is a secret's, or if it has the shape of a key. None and
    booleans are kept, and numbers except those of passwords.

    Args:
        values: A config, a section of one, or a single value.
        name: The name of the value.
        secret: The value is inside a section with a secret's name.
    """
    secret = secret or is_secret_path(name)
    if isinstance(values, Mapping):
        # A section's type is a class, which the section needs.
        return {k: hide(v, str(k), secret=secret and k != "type") for k, v in values.items()}
    if isinstance(values, str):
        is_key = name.lower().endswith("key") and _RANDOM.fullmatch(values)
        return HIDDEN if values and (secret or is_key) else hide_in_text(values)
    if isinstance(values, list | tuple):
        found = [hide(item, name, secret=secret) for item in values]
        return found if isinstance(values, list) else tuple(found)
    is_number = isinstance(values, int | float) and not isinstance(values, bool)
    return HIDDEN if is_number and _NUMBER.search(name) else values


def hide_in_text(text: str) -> str:
    """Return a text with `HIDDEN` in place of keys and of passwords in URLs.

    Assignments inside it count too, as in ``hub=dict(token='x')`` or ``host=h password=x``.
    """
    text = _IN_ADDRESS.sub(_without_password, _VALUE.sub(HIDDEN, text))
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _QUERY.sub(_without_signature, text)
    return _without_assigned(text)


def _without_password(found: re.Match[str]) -> str:
    return HIDDEN if found[1] is None else f"{found[1]}:{HIDDEN}"


def _without_signature(found: re.Match[str]) -> str:
    is_secret = is_secret_name(found[1]) or found[1].lower() in _SIGNED
    return f"{found[1]}={HIDDEN}" if is_secret else found[0]


def _without_assigned(text: str) -> str:
    parts, done = [], 0
    for found in _BEFORE.finditer(text):
        if found.end() < done or not is_secret_path(found[2]):
            continue
        bare = _HEADER if found[2].lower() in _HEADERS else _BARE
        value = _QUOTED.match(text, found.end()) or bare.match(text, found.end())
        if value is not None:
            parts += [text[done : value.start("value")], HIDDEN]
            done = value.end("value")
    return "".join([*parts, text[done:]])


def hide_in_words(words: Sequence[str]) -> list[str]:
    """Return words without secrets: ``--token X``, ``--token=X``, ``a.token=X``."""
    found: list[str] = []
    takes_next = False
    for word in words:
        assigned = _ASSIGNED.match(word)
        if takes_next and not word.startswith("-"):
            found.append(HIDDEN)
        elif assigned and is_secret_path(assigned["name"].lstrip("-")):
            found.append(f"{assigned['name']}{assigned['sign']}{HIDDEN}")
        else:
            found.append(HIDDEN if _WANDB_KEY.fullmatch(word) else hide_in_text(word))
        takes_next = word.startswith("--") and not assigned and is_secret_name(word.lstrip("-"))
    return found
