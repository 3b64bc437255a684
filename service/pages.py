"""What the server says of itself: a page to people, the contract to programs. Pure."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from string import Template

import yaml

from service import __version__

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
"""A name or address with its port, and nothing that could mean more to a shell or to HTML."""

_TEMPLATE = files("service").joinpath("page.html").read_text("utf-8")

_CONVERSATION = r"""URL={url}
KEY=$(openssl rand -hex 32)
printf 'an encrypted bundle' > bundle.aes
HMAC=$(openssl dgst -sha256 -hmac "$KEY" bundle.aes | sed 's/.*= //')

ID=$(curl -sS --fail-with-body "$URL/upload" \
  -H "X-HMAC: $HMAC" --data-binary @bundle.aes)

curl -sS --fail-with-body "$URL/files/$ID" --output fetched.aes \
  -H "X-HMAC: $HMAC" -H "X-SIGNING-KEY: $KEY"
cmp bundle.aes fetched.aes && echo identical

curl -sS --fail-with-body -X DELETE "$URL/files/$ID" \
  -H "X-HMAC: $HMAC" -H "X-SIGNING-KEY: $KEY" && echo deleted"""

_PROOF = {
    True: "<code>X-HMAC</code> and <code>X-SIGNING-KEY</code>, always",
    False: "<code>X-HMAC</code> and <code>X-SIGNING-KEY</code>; "
    "for a bundle uploaded without <code>X-HMAC</code> the id is enough",
}

_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "byte"))
_SECONDS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def _style_hash() -> str:
    """The one inline style as CSP's hash source."""
    style = _TEMPLATE.partition("<style>")[2].partition("</style>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"


CONTENT_SECURITY_POLICY = (
    # The image is the icon: without one of its own, a browser would ask for /favicon.ico.
    f"default-src 'none'; style-src '{_style_hash()}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(host: str, *, https: bool, limit: int, retention: int, require_hmac: bool) -> str:
    """The page in HTML. `host` is what the request named, `limit` bytes, `retention` seconds.

    Its lines are made to be pasted into a shell, so a `host` that is none is not repeated.
    """
    url = f"http{'s' * https}://{host}" if _HOST.fullmatch(host) else "http://localhost:5558"
    return Template(_TEMPLATE).substitute(
        limit=html.escape(_counted(limit, _BYTES)),
        retention=html.escape(_counted(retention, _SECONDS)),
        proof=_PROOF[require_hmac],
        conversation=html.escape(_CONVERSATION.replace("{url}", url), quote=False),
        version=html.escape(__version__),
    )


def contract(*, retention: int, require_hmac: bool) -> str:
    """The OpenAPI document in JSON, with what depends on the settings as it is on this server."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is 20 times as fast
    document = yaml.load(files("service").joinpath("openapi.yaml").read_bytes(), loader)  # noqa: S506
    document["info"]["version"] = __version__
    parameters = document["components"]["parameters"]
    parameters["Ttl"]["schema"]["maximum"] = retention
    for name in ("Hmac", "SigningKey"):
        parameters[name]["required"] = require_hmac
    return json.dumps(document)


def prefers_html(accept: str) -> bool:
    """Whether an `Accept` header names text/html, and text/plain not before it.

    Browsers do; curl, probes and load balancers send `*/*` or nothing.
    """
    wanted = _weight(accept, "text/html")
    return wanted > 0 and wanted >= _weight(accept, "text/plain")


def _weight(accept: str, media_type: str) -> float:
    """What a media type that is named weighs (RFC 9110, section 12.4.2); 0 if it is not."""
    for item in accept.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() == media_type:
            weight = re.search(r"(?:^|;)\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", parameters)
            return float(weight[1]) if weight else 1.0
    return 0.0


def _counted(number: int, units: Iterable[tuple[int, str]]) -> str:
    """A number of bytes or seconds in the largest unit that leaves no rest."""
    size, unit = next(found for found in units if number % found[0] == 0)
    count = number // size
    return f"{count}\N{NO-BREAK SPACE}{unit}{'s' if count != 1 and unit.islower() else ''}"
