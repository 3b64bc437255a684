"""The settings: valid and invalid values, and a report of all mistakes at once."""

import pytest

from service import settings
from service.errors import SettingsError
from tests.support.key_leaks import LEAK_DETECTOR


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the bucket. Remove the regions, which may be set on this machine."""
    monkeypatch.setenv("HISTORY_BUCKET", "a-bucket")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)


def test_default_settings() -> None:
    loaded = settings.load()
    assert loaded.bucket == "a-bucket"
    assert loaded.prefix == "bundles/"
    assert loaded.retention == 7 * 86_400
    assert loaded.max_bundle_size == 100 << 20
    assert loaded.require_hmac is True
    assert loaded.cors_origins == ("*",)
    assert loaded.part_size == 8 << 20
    assert (loaded.read_timeout, loaded.drain_timeout) == (30, 30)
    assert (loaded.host, loaded.port) == ("0.0.0.0", 5558)
    assert (loaded.log_format, loaded.log_level) == ("json", "info")


VALID_VALUES = [
    ("RETENTION", "90m", 5400),
    ("RETENTION", "72h", 72 * 3600),
    ("RETENTION", " 1 d ", 86_400),
    ("MAX_BUNDLE_SIZE", "12MB", 12_000_000),
    ("MAX_BUNDLE_SIZE", "1GiB", 1 << 30),
    ("MAX_BUNDLE_SIZE", "512B", 512),
    ("PART_SIZE", "5MiB", 5 << 20),
    ("REQUIRE_HMAC", "false", False),
    ("REQUIRE_HMAC", "", True),
    (
        "CORS_ORIGINS",
        "https://a.example, https://b.example",
        ("https://a.example", "https://b.example"),
    ),
    ("CORS_ORIGINS", "http://[::1]:3000", ("http://[::1]:3000",)),
    ("READ_TIMEOUT", "5s", 5),
    ("PORT", "0", 0),
    ("LOG_FORMAT", "TEXT", "text"),
    ("LOG_LEVEL", "Debug", "debug"),
]


@pytest.mark.parametrize(("name", "value", "expected"), VALID_VALUES)
def test_valid_value_is_loaded(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object
) -> None:
    monkeypatch.setenv(f"HISTORY_{name}", value)
    assert getattr(settings.load(), name.lower()) == expected


INVALID_VALUES = [
    ("BUCKET", "Not A Bucket"),
    ("PREFIX", "/absolute/"),
    ("PREFIX", "no-slash"),
    ("RETENTION", "7"),
    ("RETENTION", "0s"),
    ("RETENTION", "-1d"),
    ("RETENTION", "1.5d"),
    ("RETENTION", "٣d"),
    ("MAX_BUNDLE_SIZE", "0MiB"),
    ("MAX_BUNDLE_SIZE", "lots"),
    ("PART_SIZE", "4MiB"),
    ("REQUIRE_HMAC", "perhaps"),
    ("READ_TIMEOUT", "0s"),
    ("DRAIN_TIMEOUT", "forever"),
    ("PORT", "65536"),
    ("PORT", "tcp://10.0.0.1:5558"),
    ("PORT", "5_558"),
    ("PREFIX", "../"),
    ("PREFIX", "a/./b/"),
    ("PREFIX", "a" * 200 + "/"),
    ("LOG_FORMAT", "xml"),
    ("LOG_LEVEL", "loud"),
    ("HOST", " "),
]


@pytest.mark.parametrize(("name", "value"), INVALID_VALUES)
def test_invalid_value_is_reported_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HISTORY_{name}", value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    [mistake] = caught.value.mistakes
    assert mistake.startswith(f"HISTORY_{name}: should be ")
    assert repr(value) in mistake


SECRET = LEAK_DETECTOR.add_key("CZyKBQ3RoAkPpYcB2uJ0mjCgN1t7hT4TJfWcM8vXq2s")
SECRET_VALUES = [
    ("UPLOAD_TOKENS", f"my-app:{SECRET}", "Number 1 of 1 is not such a pair: run `message-history"),
    ("UPLOAD_TOKENS", SECRET, "message-history-server token NAME"),
    ("UPLOAD_TOKENS", f"a:{'0' * 64}, {SECRET}:{SECRET}", "Number 2 of 2 is not"),
    ("UPLOAD_LIMITS", f"my-app:{SECRET}", "such as transfers:32"),
    ("UPLOAD_LIMITS", f"bytes-per-hour:{SECRET}", "such as 10GiB"),
    ("JWT_JWKS_URL", f"https://user:{SECRET}@id.example/keys", "without a user name and a passw"),
    ("JWT_JWKS_URL", f"https://{SECRET}@id.example", "without a user name and a password"),
    ("JWT_JWKS_URL", f"http://id.example/keys?key={SECRET}", "an https URL, or an http URL of"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), SECRET_VALUES)
def test_invalid_value_that_may_hold_a_secret_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    monkeypatch.setenv(f"HISTORY_{name}", value)
    if name == "JWT_JWKS_URL":
        monkeypatch.setenv("HISTORY_JWT_ISSUER", "https://id.example")
        monkeypatch.setenv("HISTORY_JWT_AUDIENCE", "history")
    with pytest.raises(SettingsError) as caught:
        settings.load()
    [mistake] = caught.value.mistakes
    assert mistake.startswith(f"HISTORY_{name}: should be ")
    assert remedy in mistake
    assert SECRET not in mistake


JWKS_URLS = {
    "https://id.example": True,
    "https://id.example:8443/keys?tenant=1": True,
    "https://bücher.example/keys": True,
    "https://id_provider./keys": True,
    "https://192.0.2.1/keys": True,
    "https://[2001:db8::1]:8443/keys": True,
    "http://localhost:8080/keys": True,
    "http://127.0.0.1/keys": True,
    "http://[::1]:8080": True,
    "http://id.example/keys": False,
    "http://localhost.id.example/keys": False,
    "ftp://id.example/keys": False,
    "id.example/keys": False,
    "https:///keys": False,
    "https://?x": False,
    "https://[::1": False,
    "https://[zz]/": False,
    "https://127.0.0.1:notaport/": False,
    "https://id.example:65536/": False,
    "https://a..b/": False,
    "https://.../keys": False,
    f"https://{'a' * 64}.example/": False,
    "https://%zz/": False,
    "https://id.example/the keys": False,
    "https://id.example/keys\n": False,
}


@pytest.mark.parametrize("value", JWKS_URLS)
def test_jwks_url_has_a_valid_host_and_port(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HISTORY_JWT_JWKS_URL", value)
    monkeypatch.setenv("HISTORY_JWT_ISSUER", "https://id.example")
    monkeypatch.setenv("HISTORY_JWT_AUDIENCE", "history")
    if JWKS_URLS[value]:
        assert settings.load().jwt_jwks_url == value
    else:
        with pytest.raises(SettingsError, match="HISTORY_JWT_JWKS_URL: should be an https URL"):
            settings.load()


@pytest.mark.parametrize(
    "value", ["app.example", "https://app.example/", "https://App.example", " , "]
)
def test_origin_that_no_browser_sends_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HISTORY_CORS_ORIGINS", value)
    with pytest.raises(SettingsError, match="HISTORY_CORS_ORIGINS: "):
        settings.load()


def test_all_mistakes_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTORY_BUCKET")
    monkeypatch.setenv("HISTORY_PORT", "x")
    monkeypatch.setenv("HISTORY_RETENTION", "x")
    assert _wrong_settings() == ["HISTORY_BUCKET", "HISTORY_RETENTION", "HISTORY_PORT"]


def test_all_values_that_do_not_fit_together_are_reported_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if other values are wrong by themselves. Rules that need one of these do not apply."""
    monkeypatch.setenv("HISTORY_MAX_BUNDLE_SIZE", "200GiB")
    monkeypatch.setenv("HISTORY_MEMORY_BUDGET", "1MiB")
    monkeypatch.setenv("HISTORY_JWT_ISSUER", "x")
    monkeypatch.setenv("HISTORY_UPLOAD_LIMITS", "bytes-per-hour:1B")
    contradictions = [
        "HISTORY_PART_SIZE",
        "HISTORY_MEMORY_BUDGET",
        "HISTORY_JWT_JWKS_URL",
        "HISTORY_UPLOAD_LIMITS",
    ]
    assert _wrong_settings() == contradictions
    monkeypatch.setenv("HISTORY_PORT", "x")
    assert _wrong_settings() == ["HISTORY_PORT", *contradictions]
    monkeypatch.setenv("HISTORY_MAX_BUNDLE_SIZE", "x")
    assert _wrong_settings() == [
        *("HISTORY_MAX_BUNDLE_SIZE", "HISTORY_PORT"),
        *("HISTORY_MEMORY_BUDGET", "HISTORY_JWT_JWKS_URL"),
    ]


def _wrong_settings() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings.load()
    return [mistake.split(":")[0] for mistake in caught.value.mistakes]


def test_settings_that_need_more_parts_than_s3_allows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HISTORY_MAX_BUNDLE_SIZE", "100GiB")
    with pytest.raises(SettingsError, match="HISTORY_PART_SIZE: should be at least 10737419B"):
        settings.load()


def test_memory_budget_below_two_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTORY_MEMORY_BUDGET", "15MiB")
    with pytest.raises(SettingsError, match="HISTORY_MEMORY_BUDGET: should be at least two parts"):
        settings.load()


def test_environment_overrides_the_defaults_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load(bucket="another").bucket == "a-bucket"
    monkeypatch.delenv("HISTORY_BUCKET")
    assert settings.load(bucket="another").bucket == "another"


def test_aws_region_is_used_only_without_aws_default_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings.aws_region() is None
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert settings.aws_region() == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert settings.aws_region() is None
