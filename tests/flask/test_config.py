"""What an app's config says of rtpool."""

from __future__ import annotations

import pathlib
import re

import attrs
import pytest
from flask import Flask

import rtpool
from rtpool.flask import Realtime
from rtpool.flask.config import Settings, read_settings
from rtpool.options import PoolOptions
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, state_of

PROJECT = {"RTPOOL_URL": "https://x.supabase.co", "RTPOOL_API_KEY": "key"}


def test_every_pool_option_is_a_key_and_the_pool_has_it(make_app: MakeApp) -> None:
    app = make_app(RTPOOL_NUM_WORKERS=2, RTPOOL_HEADERS={"X-App": "cars"}, RTPOOL_OVERFLOW="block")
    options = state_of(app).pool.options
    assert (options.num_workers, options.headers, options.overflow) == (2, (("X-App", "cars"),), "block")
    assert options.after_fork == "resubscribe"
    assert make_app(RTPOOL_AFTER_FORK="close").extensions["rtpool"].pool.options.after_fork == "close"
    defaults = {field.name: getattr(PoolOptions(), field.name) for field in attrs.fields(PoolOptions)}
    settings = read_settings({f"RTPOOL_{name.upper()}": value for name, value in defaults.items()})
    assert settings.options == PoolOptions()


def test_no_key_of_the_extension_is_a_pool_option() -> None:
    own = {field.name for field in attrs.fields(Settings)} - {"options"}
    assert not own & {field.name for field in attrs.fields(PoolOptions)}


@pytest.mark.parametrize("where", ["config", "environment"])
@pytest.mark.parametrize("key", ["SUPABASE_KEY", "SUPABASE_ANON_KEY", "SUPABASE_SERVICE_ROLE_KEY"])
def test_supabases_names_do_where_our_own_are_not_set(monkeypatch: pytest.MonkeyPatch, where: str, key: str) -> None:
    config = {"RTPOOL_API_KEY": "", "RTPOOL_URL": None}
    for name, value in (("SUPABASE_URL", "https://y.supabase.co"), (key, "theirs")):
        if where == "config":
            config[name] = value
        else:
            monkeypatch.setenv(name, value)
    settings = read_settings(config)
    assert (settings.url, settings.api_key) == ("https://y.supabase.co", "theirs")
    settings = read_settings({**config, **PROJECT})
    assert (settings.url, settings.api_key) == ("https://x.supabase.co", "key")


def test_the_config_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_KEY", "of the environment")
    assert read_settings({"SUPABASE_ANON_KEY": "of the config"}).api_key == "of the config"


def test_a_plain_phoenix_server_gets_no_projects_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_KEY", "a secret of somebody else")
    phoenix = {"RTPOOL_URL": "ws://localhost:4000/socket", "RTPOOL_TOPIC_PREFIX": ""}
    assert read_settings(phoenix).api_key is None
    assert read_settings({**phoenix, "RTPOOL_API_KEY": "mine"}).api_key == "mine"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("RTPOOL_NUM_WORKER", "; did you mean RTPOOL_NUM_WORKERS?"),
        ("RTPOOL_APIKEY", "; did you mean RTPOOL_API_KEY?"),
        ("RTPOOL_ENABLED_HEALTHCHECK", "; did you mean RTPOOL_ENABLE_HEALTH_CHECK?"),
        ("RTPOOL_OPTIONS", ""),
        ("RTPOOL_ZZZ", ""),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest(key: str, hint: str) -> None:
    app = Flask("app")
    app.config[key] = 1
    with pytest.raises(rtpool.InvalidValue) as caught:
        Realtime(app)
    assert str(caught.value) == f"the config key {key} is none of rtpool's{hint}"
    assert "rtpool" not in app.extensions


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("NUM_WORKERS", "3", 3),
        ("JOIN_TIMEOUT", " 2.5 ", 2.5),
        ("JOIN_TIMEOUT", "2", 2.0),
        ("DEBUG", "true", True),
        ("DEBUG", "OFF", False),
        ("DEBUG", 1, True),
        ("MAX_EVENTS_PER_SECOND", "none", None),
        ("MAX_EVENTS_PER_SECOND", "7", 7.0),
        ("MAX_PAYLOAD_SIZE", "", None),
        ("PROTOCOL", "1.0.0", "1.0.0"),
        ("TOPIC_PREFIX", "", ""),
    ],
)
def test_text_from_the_environment_is_read_as_what_the_option_is(key: str, text: object, value: object) -> None:
    found = getattr(read_settings({f"RTPOOL_{key}": text}).options, key.lower())
    assert (found, type(found)) == (value, type(value))


def test_flasks_own_environment_variables_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "URL": "https://x.supabase.co",
        "API_KEY": "key",
        "NUM_WORKERS": "2",
        "AUTOSTART": "no",
        "DEBUG_PAGE": "1",
        "SERVE_DEBUG": "None",
        "STREAM_LINGER": "0.5",
        "HEADERS": '{"X-App": "cars"}',
        "DEBUG_TOKEN": "1234567890123456",
        "ACCESS_TOKEN": "123",
    }
    for key, value in said.items():
        monkeypatch.setenv(f"FLASK_RTPOOL_{key}", value)
    app = Flask("app")
    app.config.from_prefixed_env()
    Realtime(app)
    settings = state_of(app).settings
    assert (settings.url, settings.api_key, settings.options.num_workers) == ("https://x.supabase.co", "key", 2)
    assert (settings.debug_token, settings.access_token) == ("1234567890123456", "123"), "Flask has read numbers"
    assert (settings.autostart, settings.debug_page, settings.serve_debug) == (False, True, None)
    assert (settings.stream_linger, settings.options.headers) == (0.5, (("X-App", "cars"),))


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("NUM_WORKERS", 0, rtpool.InvalidValue, "the config key RTPOOL_NUM_WORKERS must be an integer >= 1, not 0"),
        ("NUM_WORKERS", "many", rtpool.InvalidType, "the config key RTPOOL_NUM_WORKERS must be an integer"),
        ("NUM_WORKERS", "1.5", rtpool.InvalidType, "the config key RTPOOL_NUM_WORKERS must be an integer"),
        (
            "DEBUG",
            "maybe",
            rtpool.InvalidType,
            "the config key RTPOOL_DEBUG must be true, .*, off or 0, not .maybe",
        ),
        ("HEADERS", {"Upgrade": "x"}, rtpool.InvalidValue, "the config key RTPOOL_HEADERS: Upgrade belongs"),
        ("MAX_DELAY", 0.5, rtpool.InvalidValue, "the config key RTPOOL_MAX_DELAY .0.5. must be >= base_delay"),
        ("DIAL", 5, rtpool.InvalidType, "the config key RTPOOL_DIAL must be callable or None, not int"),
        ("URL", 5.5, rtpool.InvalidType, "the config key RTPOOL_URL must be str or None, not float"),
        ("URL", "ftp://x", rtpool.InvalidValue, "the config's RTPOOL_URL or SUPABASE_URL: the url's scheme must be"),
        ("MAX_STREAMS", -1, rtpool.InvalidValue, "the config key RTPOOL_MAX_STREAMS must be an integer >= 0, not -1"),
        ("STREAM_HEARTBEAT", 0, rtpool.InvalidValue, "the config key RTPOOL_STREAM_HEARTBEAT must be a number > 0"),
        ("AUTOSTART", "perhaps", rtpool.InvalidType, "RTPOOL_AUTOSTART must be true, .* or 0, or none, not .perhaps"),
        ("DEBUG_TOKEN", "too short", rtpool.InvalidValue, "RTPOOL_DEBUG_TOKEN must have at least 16 characters"),
        ("ACCESS_TOKEN", "a\nb", rtpool.InvalidValue, "the config key RTPOOL_ACCESS_TOKEN is empty, or has"),
        ("DEBUG_PAGE", 2, rtpool.InvalidType, "RTPOOL_DEBUG_PAGE must be true, .* or 0, or none, not 2"),
        ("DEBUG_TOKEN", "with a blank or two", rtpool.InvalidValue, "RTPOOL_DEBUG_TOKEN must be .* without blanks"),
        ("ACCESS_TOKEN", 5.5, rtpool.InvalidType, "the config key RTPOOL_ACCESS_TOKEN must be a str or a callable"),
    ],
)
def test_a_bad_value_is_refused_at_init_app_and_its_key_is_named(
    key: str, value: object, error: type[Exception], words: str
) -> None:
    app = Flask("app")
    app.config[f"RTPOOL_{key}"] = value
    with pytest.raises(error, match=words):
        Realtime(app)


def test_two_options_that_exclude_each_other_are_refused_as_such() -> None:
    config = {"RTPOOL_DIAL": print, "RTPOOL_PROXY": "http://127.0.0.1:3128"}
    with pytest.raises(rtpool.InvalidValue, match=r"^rtpool's config: options dial and proxy exclude each other"):
        read_settings(config)


def test_secrets_are_in_no_repr_and_no_error() -> None:
    config = {**PROJECT, "RTPOOL_API_KEY": "k-secret", "RTPOOL_ACCESS_TOKEN": "t-secret"}
    settings = read_settings({**config, "RTPOOL_DEBUG_TOKEN": "d-secret-long-enough"})
    assert "secret" not in repr(settings)
    for key in ("DEBUG_TOKEN", "ACCESS_TOKEN", "API_KEY"):
        with pytest.raises(rtpool.RtpoolError) as caught:
            read_settings({**config, f"RTPOOL_{key}": 5 if key == "DEBUG_TOKEN" else "a\nsecret"})
        assert "secret" not in str(caught.value)


def test_without_a_url_the_first_use_names_all_that_was_looked_for(make_app: MakeApp) -> None:
    app = make_app(RTPOOL_URL="")
    with pytest.raises(rtpool.InvalidValue) as caught:
        _ = state_of(app).pool
    assert str(caught.value) == "the app's config has no RTPOOL_URL, and neither it nor the environment SUPABASE_URL"
    assert not state_of(app).has_pool


def test_without_a_key_as_well(make_app: MakeApp) -> None:
    app = make_app(RTPOOL_API_KEY=None)
    words = "no RTPOOL_API_KEY, and neither it nor the environment SUPABASE_KEY, SUPABASE_ANON_KEY, SUPABASE_SERVICE"
    with pytest.raises(rtpool.InvalidValue, match=words):
        _ = state_of(app).pool
    app.config["RTPOOL_HEADERS"] = {"X-API-Key": "key"}
    assert state_of(app).pool.options.headers == (("X-API-Key", "key"),)


def test_what_is_changed_after_create_app_counts(make_app: MakeApp, server: RealtimeServer) -> None:
    app = make_app(RTPOOL_URL="https://x.supabase.co", RTPOOL_NUM_WORKERS=1)
    app.config.update(RTPOOL_URL=server.url, RTPOOL_NUM_WORKERS=3, RTPOOL_MAX_STREAMS=7)
    state = state_of(app)
    state.pool.connect(10)
    assert (state.pool.options.num_workers, state.settings.max_streams) == (3, 7)
    server.wait_for(lambda s: s.connections_total == 1)  # it has answered, and counts a moment later


def test_what_is_misspelt_after_create_app_is_told_at_first_use(make_app: MakeApp) -> None:
    app = make_app()
    app.config["RTPOOL_NUM_WORKES"] = 3
    with pytest.raises(rtpool.InvalidValue, match="did you mean RTPOOL_NUM_WORKERS"):
        _ = state_of(app).pool


def test_the_readmes_table_of_keys_is_the_settings() -> None:
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    rows = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("| `RTPOOL_")]
    fields = {f"RTPOOL_{field.name.upper()}": field.default for field in attrs.fields(Settings)}
    shown = {"RTPOOL_STREAM_BUFFER": "1,000", "RTPOOL_STREAM_BUFFER_BYTES": "4 MiB"}
    named = []
    for names, values in rows:
        keys = re.findall(r"`(\w+)`", names)
        defaults = [value.strip().strip("`") for value in re.split(r", (?![0-9]{3})", values.strip())]
        named += keys
        for key, value in zip(keys, defaults, strict=False):
            if isinstance(fields[key], (int, float)):
                assert value == shown.get(key, repr(fields[key])), key
    assert sorted(named) == sorted(fields.keys() - {"RTPOOL_OPTIONS"})
