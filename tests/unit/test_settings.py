"""Flag over environment over default."""

import pytest
from pydantic import ValidationError

from app.settings import Settings
from softserve.schema.server import Limits


def test_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, None)
    assert settings.precision == "auto"


def test_the_environment_is_above_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTSERVE_PORT", "9000")
    monkeypatch.setenv("SOFTSERVE_MAX_N", "2")
    settings = Settings()
    assert (settings.port, settings.max_n) == (9000, 2)


def test_a_flag_is_above_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTSERVE_PORT", "9000")
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(("given", "has_playground"), [("1", True), ("false", False)])
def test_the_playground_can_be_asked_for_and_refused(
    given: str, has_playground: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTSERVE_PLAYGROUND", given)
    for host in ("127.0.0.1", "192.0.2.1"):
        assert Settings(host=host).has_playground == has_playground


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_its_sentence(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description is not None
    assert description.endswith(".")


def test_limits_are_settings() -> None:
    assert Limits.model_fields.keys() < Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("precision", "int4"),
        ("context_window", 0),
        ("kv_cache_gib", 0),
        ("drain_timeout_seconds", -1),
        ("max_sequences_in_flight", 0),
        ("admin_key", ""),
        ("max_lora_rank", 0),
        ("origin", "http://bucket/prefix"),
        ("origin", "/srv/origin"),
        ("origin", "file:srv"),
        ("origin", "file:///"),
        ("origin", "s3://"),
        ("origin", "s3://key:secret@bucket"),
        ("origin", "s3://bucket?x=1"),
        ("cors_origin", "*"),
        ("cors_origin", "https://app.example/"),
        ("cors_origin", "app.example"),
        ("trusted_host", "app.example:8000"),
        ("trusted_host", "http://app.example"),
        ("adapter_retention", 0),
        ("log_level", "loud"),
        ("colour", "red"),
    ],
)
def test_bad_values(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(**{name: value})  # type: ignore[arg-type]
    # Of several values, the one at fault is told by its place.
    assert [error["loc"][0] for error in raised.value.errors()] == [name]


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://bucket/a/b", "gs://b/a", "az://container/a", "file:///srv/a b"]
)
def test_an_origin(url: str) -> None:
    assert Settings(origin=url).origin == Settings(origin=f"{url}/").origin == url
