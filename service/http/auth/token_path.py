"""Upload tokens in the path: `/t/<token>/upload`. XMTP's SDKs can be given nothing but a URL.

`middleware` takes the token out of the path before anything is logged, and `authorizer` reads it.
"""

import re

SCOPE_KEY = "upload_token"
"""Where the token of the path is in the ASGI scope, or `None`."""

_WITH_TOKEN = re.compile(r"/t/([^/]+)(/upload|/files/.*|)", re.DOTALL)
_MISPLACED = re.compile(r"/t/.*", re.DOTALL)


def split_path(path: str) -> tuple[str, str | None]:
    """Split a decoded path with single slashes into the path without its token, and the token.

    Only public paths are accepted after a token: a proxy that resolves dot segments would take
    `/t/./metrics` for another path than this service.
    """
    match = _WITH_TOKEN.fullmatch(path)
    return (path, None) if match is None else (match[2] or "/", match[1])


def hide_token(path: str) -> str:
    """Remove what may be a token in the wrong place in a path, for the log."""
    return _MISPLACED.sub("/t/…", path)
