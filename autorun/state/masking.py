"""Secrets masked in what is shown: configurations, URLs, and messages that quote them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

STARS = "********"

#: The user and password of a URL, up to the last @: a password may contain one, or a slash.
_LOGIN = re.compile(r"(?<=://)([^\s/@:\"']*)(?:(:)(?:(?!://)[^\s\"'])*)?@")
_WORDS = (
    *("password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "cookie"),
    *(f"{kind}{sign}key" for kind in ("api", "access", "private") for sign in ("_", "-", "")),
    *("authorization", "sessionid", "session_key"),
)
#: What every text has that is searched for a secret.
_SIGNS = (*_WORDS, "sig=", "signature=", "bearer")
#: The scheme before a secret in an HTTP header.
_SCHEME = r"(?:(?:bearer|basic|digest|token)\s+)?"
#: An assignment to a secret, as in a connection string, a query or a printed dictionary.
_ASSIGNED = re.compile(
    rf"((?:{'|'.join(_WORDS)})[\w.-]{{0,30}}(?:=|[\"']\s*:\s*)"
    r"|(?<=[?&])(?:x-amz-)?sig(?:nature)?=)"
    rf"(?:\"[^\"\n]*\"?|'[^'\n]*'?|{_SCHEME}[^\s\"'&;,)}}\]]+)",
    re.IGNORECASE,
)
#: A secret in a line of HTTP headers, or after the word `Bearer`.
_HEADER = re.compile(
    rf"((?:authorization|api-key):\s*{_SCHEME}|\bcookie:\s*[\w.-]+=|\bbearer\s+(?=[\w.~+/=-]{{16}}))[^\s\"',;)}}\]]+",
    re.IGNORECASE,
)
#: What Django's error reports mask, and more; but not "session", as scans are taken in sessions.
_SECRET = re.compile(
    rf"api|auth|token|key|secret|pass|signature|bearer|{'|'.join(_WORDS)}", re.IGNORECASE
)
#: Whole words of a name that is probably a secret's, and not a keyframe's or an author's.
_SURE = re.compile(
    rf"(?:^|[_\W])(?:{'|'.join(_WORDS)}|credentials|cookies|auth|bearer)(?:$|[_\W])", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text with stars for passwords and signatures in URLs, secret headers, and assignments."""
    if "://" in text:
        text = _LOGIN.sub(_without_password, text)
    plain = text.lower()
    # The expressions take a second for a megabyte.
    if any(sign in plain for sign in _SIGNS):
        text = _HEADER.sub(rf"\1{STARS}", _ASSIGNED.sub(rf"\1{STARS}", text))
    return text


def without_secrets(value: Any, key: object = "") -> Any:
    """A configuration, or the value of one `key`, with stars in place of secrets.

    These are the values of keys that Django's error reports mask or that name a secret, and
    passwords in URLs.
    """
    if isinstance(key, str) and _SECRET.search(key):
        # A number is shown, as that of max_tokens, unless the name is a password's.
        is_plain = isinstance(value, bool | None)
        if not is_plain and (not isinstance(value, int | float) or _SURE.search(key)):
            return STARS
    if isinstance(value, Mapping):
        return {name: without_secrets(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(each) for each in value]
    return masked(value) if isinstance(value, str) else value


def secrets_in(value: Any, path: str = "") -> Iterator[str]:
    """The paths of what is probably a secret in a configuration: `service.password`."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from secrets_in(each, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from secrets_in(each, f"{path}[{index}]")
    elif isinstance(value, str) and value:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.rpartition(".")[2])
        if _SURE.search(name) or masked(value) != value:
            yield path


def _without_password(match: re.Match[str]) -> str:
    user, colon = match.groups()
    return f"{user}:{STARS}@" if colon else f"{STARS}@"  # without a password, it may be a token
