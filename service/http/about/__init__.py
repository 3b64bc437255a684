"""The page at `/` and the OpenAPI document. Pure."""

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

_SAFE_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
"""A host name or address with a port that is safe in a shell and in HTML.

A name that starts with a hyphen is not. The access log also takes names that are not safe here.
"""

_TEMPLATE = files("service.http.about").joinpath("page.html").read_text("utf-8")

_EXAMPLE = r"""URL={url}
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
    """Return the hash of the inline style for the Content-Security-Policy."""
    style = _TEMPLATE.partition("<style>")[2].partition("</style>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"


CONTENT_SECURITY_POLICY = (
    # The image is the icon. Without it, browsers would request /favicon.ico.
    f"default-src 'none'; style-src '{_style_hash()}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(host: str, *, https: bool, max_size: int, retention: int, require_hmac: bool) -> str:
    """Return the HTML page. `max_size` is in bytes, `retention` in seconds.

    `host` is the request's Host header. People paste the commands on the page into a shell, so a
    `host` that is not a host name is replaced.
    """
    url = f"http{'s' * https}://{host}" if _SAFE_HOST.fullmatch(host) else "http://localhost:5558"
    return Template(_TEMPLATE).substitute(
        max_size=html.escape(_with_unit(max_size, _BYTES)),
        retention=html.escape(_with_unit(retention, _SECONDS)),
        proof=_PROOF[require_hmac],
        example=html.escape(_EXAMPLE.replace("{url}", url), quote=False),
        version=html.escape(__version__),
    )


def openapi_document(*, retention: int, require_hmac: bool) -> str:
    """Return the OpenAPI document as JSON, with the limits of this server's settings."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # CSafeLoader is 20 times as fast.
    document = yaml.load(files("service.http.about").joinpath("openapi.yaml").read_bytes(), loader)  # noqa: S506
    document["info"]["version"] = __version__
    parameters = document["components"]["parameters"]
    parameters["Ttl"]["schema"]["maximum"] = retention
    for name in ("Hmac", "SigningKey"):
        parameters[name]["required"] = require_hmac
    return json.dumps(document)


def prefers_html(accept: str) -> bool:
    """Return whether an `Accept` header names text/html, and does not prefer text/plain.

    Browsers name it. curl, probes and load balancers send `*/*` or nothing.
    """
    weight = _weight(accept, "text/html")
    return weight > 0 and weight >= _weight(accept, "text/plain")


def _weight(accept: str, media_type: str) -> float:
    """Return the weight of a media type (RFC 9110, section 12.4.2), 0 if it is not named."""
    for item in accept.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() == media_type:
            weight = re.search(r"(?:^|;)\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", parameters)
            return float(weight[1]) if weight else 1.0
    return 0.0


def _with_unit(number: int, units: Iterable[tuple[int, str]]) -> str:
    """Format a number of bytes or seconds in the largest unit that divides it."""
    size, unit = next(candidate for candidate in units if number % candidate[0] == 0)
    count = number // size
    return f"{count}\N{NO-BREAK SPACE}{unit}{'s' if count != 1 and unit.islower() else ''}"
