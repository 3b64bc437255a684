"""The settings: environment variables named HISTORY_*, checked when the process starts.

No other module reads them. botocore itself reads AWS's variables (AWS_PROFILE, AWS_ENDPOINT_URL_S3
…), profiles and roles. The exception is AWS_REGION: other AWS SDKs read it, but botocore does not,
so it is read here and passed on.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6}
_BYTES["GB"] = 10**9

MAX_PORT = 65_535
MAX_PARTS = 10_000
"""The maximum number of parts of an S3 multipart upload."""

MIN_PART_SIZE = 5 << 20
"""Bytes of the smallest part that S3 accepts, except for the last one."""

_UPLOAD_TOKEN = re.compile(r"(?!jwt:)[A-Za-z0-9._-]{1,64}:[0-9a-f]{64}")
"""A name and a SHA-256. In metrics, `jwt` is the name of all callers with a JWT."""

_THIS_MACHINE = {b"localhost", b"127.0.0.1", b"::1"}
_HOST = re.compile(rb"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]*")
"""A domain name, or an IP address. `urlsplit` checks IPv6 addresses itself."""

_MAY_HOLD_SECRETS = {"upload_tokens", "upload_limits", "jwt_jwks_url"}
"""Settings whose wrong value is not printed. It may be a token instead of its hash, for example."""


def _quantity(units: dict[str, int], example: str) -> Callable[[Any], Any]:
    """Parse a whole number with its unit, such as `7d` or `8MiB`."""
    pattern = re.compile(rf"([0-9]{{1,12}})\s*({'|'.join(units)})")

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = pattern.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"should be a whole number and its unit, such as {example}")
        return int(match[1]) * units[match[2]]

    return parse


def _between(low: int, high: int, rule: str) -> Callable[[int], int]:
    def check(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"should be {rule}")
        return value

    return check


def _matching(pattern: str, rule: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"should be {rule}")
        return value

    return check


def _origins(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(origin.strip() for origin in value.split(",") if origin.strip())


def is_upload_token(token: str) -> bool:
    """Return whether this is a name and the SHA-256 of a token, as in HISTORY_UPLOAD_TOKENS."""
    return _UPLOAD_TOKEN.fullmatch(token) is not None


def _upload_tokens(value: Any) -> Any:
    """Parse pairs of a name and a SHA-256."""
    if not isinstance(value, str):
        return value
    tokens = [token.strip() for token in value.split(",") if token.strip()]
    for number, token in enumerate(tokens, 1):
        if not is_upload_token(token):
            raise ValueError(
                "should be pairs of a name and the SHA-256 of a token in lower-case hex, such as "
                f"my-app:9f86…, separated by commas. Number {number} of {len(tokens)} is not such "
                "a pair: run `message-history-server token NAME`, which makes one (the name jwt is "
                "reserved)"
            )
    return tuple(tuple(token.split(":")) for token in tokens)


def _upload_limits(value: Any) -> Any:
    """Parse `transfers:32,bytes-per-hour:10GiB`, in any order and each of them optional."""
    if not isinstance(value, str):
        return value
    limits = {}
    for limit in value.split(","):
        name, _, amount = limit.strip().partition(":")
        valid = name == "transfers" and re.fullmatch("[1-9][0-9]{0,5}", amount)
        if not valid and name != "bytes-per-hour":
            raise ValueError(
                "should be limits of each caller, such as transfers:32,bytes-per-hour:10GiB"
            )
        limits[name] = int(amount) if valid else _quantity(_BYTES, "10GiB")(amount)
    return limits


def _jwks_url(value: str) -> str:
    try:
        url = urlsplit(value)
        host, _ = (url.hostname or "").encode("idna"), url.port
    except ValueError:
        host = b""
    if host and "@" in url.netloc:
        raise ValueError(
            "should be a URL without a user name and a password: the keys in it are public"
        )
    allowed = {"https"} if host not in _THIS_MACHINE else {"https", "http"}
    if not _HOST.fullmatch(host) or url.scheme not in allowed or re.search(r"\s", value):
        raise ValueError("should be an https URL, or an http URL of this machine")
    return value


def _port(value: Any) -> int:
    text = str(value).strip()
    if re.fullmatch("[0-9]{1,5}", text) and int(text) <= MAX_PORT:
        return int(text)
    rule = "should be a port, from 0 (any free one) to 65535"
    if text.startswith("tcp://"):
        rule += " (Kubernetes sets it for a Service named history: set enableServiceLinks: false)"
    raise ValueError(rule)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Seconds = Annotated[int, BeforeValidator(_quantity(_SECONDS, "90m, 72h or 7d"))]
Bytes = Annotated[int, BeforeValidator(_quantity(_BYTES, "8MiB or 100MiB"))]
Origin = Annotated[
    str,
    AfterValidator(
        _matching(
            r"\*|[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]-]+",
            "* or origins such as https://app.example, in lower case and without a path",
        )
    ),
]
UploadTokens = Annotated[
    tuple[tuple[str, str], ...],
    NoDecode,
    BeforeValidator(_upload_tokens),
]
Timeout = Annotated[Seconds, AfterValidator(_between(1, 86_400, "from 1s to 24h"))]


class Settings(BaseSettings):
    """All settings, named without HISTORY_. Sizes are in bytes, durations in seconds."""

    model_config = SettingsConfigDict(env_prefix="HISTORY_", frozen=True, env_ignore_empty=True)

    bucket: Annotated[
        str,
        AfterValidator(
            _matching(
                r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
                "an S3 bucket name: 3 to 63 lower-case letters, digits, dots and hyphens",
            )
        ),
    ]
    prefix: Annotated[
        str,
        AfterValidator(
            _matching(
                r"(?=.{1,200}$)([A-Za-z0-9_-][A-Za-z0-9._-]*/)+",
                "a key prefix of up to 200 letters, digits, dots, hyphens and underscores; each "
                "folder ends with / and does not start with a dot",
            )
        ),
    ] = "bundles/"
    records: Annotated[Literal["tags", "metadata"], BeforeValidator(_lower)] = "tags"
    retention: Annotated[
        Seconds, AfterValidator(_between(1, 3_650 * 86_400, "from 1s to 3650d"))
    ] = 7 * 86_400
    max_bundle_size: Annotated[
        Bytes, AfterValidator(_between(1, 5 << 40, "from 1B to 5120GiB (S3's largest object)"))
    ] = 100 << 20
    require_hmac: bool = True
    cors_origins: Annotated[
        tuple[Origin, ...],
        NoDecode,
        BeforeValidator(_origins),
        Field(min_length=1),
    ] = ("*",)
    part_size: Annotated[
        Bytes, AfterValidator(_between(MIN_PART_SIZE, 5 << 30, "from 5MiB to 5GiB (S3's bounds)"))
    ] = 8 << 20
    memory_budget: Annotated[
        Bytes, AfterValidator(_between(1, 1 << 50, "from 10MiB to 1048576GiB"))
    ] = 256 << 20
    upload_tokens: UploadTokens = ()
    jwt_jwks_url: Annotated[str, AfterValidator(_jwks_url)] | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    upload_limits: Annotated[dict[str, int], NoDecode, BeforeValidator(_upload_limits)] = Field(
        default_factory=dict
    )
    queue_timeout: Timeout = 10
    read_timeout: Timeout = 30
    drain_timeout: Timeout = 30
    drain_delay: Annotated[Seconds, AfterValidator(_between(0, 3_600, "from 0s to 1h"))] = 5
    host: Annotated[str, AfterValidator(_matching(r"\S+", "an address to listen on"))] = "0.0.0.0"
    port: Annotated[int, BeforeValidator(_port)] = 5558
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = Field(
        default_factory=lambda: "text" if sys.stderr.isatty() else "json"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        "info"
    )

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        if mistakes := list(self._contradictions()):
            raise ValueError("\n".join(mistakes))
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.max_bundle_size > MAX_PARTS * self.part_size:
            yield (
                f"HISTORY_PART_SIZE: should be at least {-(-self.max_bundle_size // MAX_PARTS)}B "
                f"for this HISTORY_MAX_BUNDLE_SIZE, because S3 allows {MAX_PARTS} parts"
            )
        if self.memory_budget < 2 * self.part_size:
            yield (
                "HISTORY_MEMORY_BUDGET: should be at least two parts of HISTORY_PART_SIZE, "
                f"{2 * self.part_size}B"
            )
        jwt = [self.jwt_jwks_url, self.jwt_issuer, self.jwt_audience]
        if any(jwt) and not all(jwt):
            yield (
                "HISTORY_JWT_JWKS_URL: should be set together with HISTORY_JWT_ISSUER and "
                "HISTORY_JWT_AUDIENCE, all three or none"
            )
        bytes_per_hour = self.upload_limits.get("bytes-per-hour", math.inf)
        if bytes_per_hour < self.max_bundle_size:
            yield (
                "HISTORY_UPLOAD_LIMITS: bytes-per-hour should be at least HISTORY_MAX_BUNDLE_SIZE, "
                f"{self.max_bundle_size}B"
            )


def aws_region() -> str | None:
    """Return the region to pass to botocore, or `None` if botocore finds one by itself."""
    return None if os.environ.get("AWS_DEFAULT_REGION") else os.environ.get("AWS_REGION") or None


def load(**defaults: str) -> Settings:
    """Read the environment; `defaults` are used for variables that are not set.

    An empty variable counts as not set. Raises `SettingsError`, which lists every mistake.
    """
    environ = {name.upper(): value for name, value in os.environ.items()}
    unset = {
        name: value
        for name, value in defaults.items()
        if not environ.get(f"HISTORY_{name.upper()}")
    }
    try:
        return Settings(**unset)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = {str(details["loc"][0]) for details in error.errors() if details["loc"]}
        others = _contradictions_besides(wrong, unset) if wrong else []
        raise SettingsError([*_mistakes(error), *others]) from error


def _contradictions_besides(wrong: AbstractSet[str], values: Mapping[str, str]) -> list[str]:
    """Return which values do not fit together. Those that are `wrong` count as not set.

    pydantic only compares values if all of them are valid.
    """
    default = Settings.model_construct(bucket="any")
    names = {f"HISTORY_{name.upper()}" for name in wrong}
    try:
        Settings(**{**values, **{name: getattr(default, name) for name in wrong}})
    except ValidationError as error:
        return [line for line in _mistakes(error) if names.isdisjoint(re.findall("[A-Z_]+", line))]
    return []


def _mistakes(error: ValidationError) -> list[str]:
    return [line for details in error.errors() for line in _mistake(details).splitlines()]


def _mistake(details: Any) -> str:
    """Describe a wrong setting, without secrets, or all values that do not fit together."""
    if not details["loc"]:
        return str(details["ctx"]["error"])
    setting = str(details["loc"][0])
    name = f"HISTORY_{setting.upper()}"
    if details["type"] == "missing":
        return f"{name}: should be the name of the S3 bucket that holds the bundles; it is not set"
    rule = details["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if details["type"] == "bool_parsing":
        rule = "should be true or false"
    mistake = f"{name}: {rule}"
    return mistake if setting in _MAY_HOLD_SECRETS else f"{mistake}; it is {details['input']!r}"
