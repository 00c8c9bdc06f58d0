"""The examples that are whole Flask apps: each starts by its command, and keeps to itself what is not for everybody."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from types import ModuleType

import pytest
from flask.testing import FlaskClient

from rtpool.testing import RealtimeServer
from tests.servers.conftest import ROOT, Program

APPS = sorted((ROOT / "examples").glob("*/templates"))
#: What the apps have in common.
COMMON = ("static/base.css", "static/live.js")


@pytest.mark.parametrize("folder", [found.parent for found in APPS], ids=lambda folder: folder.name)
def test_an_example_app_runs_as_it_is_and_says_where(folder: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PORT": port, "PYTHONPATH": str(ROOT)}
    program = Program([sys.executable, "-W", "error", str(folder / "app.py")], environment, ROOT)
    try:
        program.wait_for(lambda: "Running on" in program.err(), "it serves")
        assert f"http://127.0.0.1:{port}/" in program.out()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            assert answer.status == 200
            assert b"rtpool.flask" in answer.read()
            assert answer.headers["Content-Security-Policy"] == "default-src 'self'; frame-ancestors 'none'"
        assert "Traceback" not in program.ends(signal.SIGINT)
    finally:
        program.kill()


def test_the_example_apps_share_what_they_have_in_common() -> None:
    assert len(APPS) >= 2
    for name in COMMON:
        assert len({(found.parent / name).read_text() for found in APPS}) == 1, name


@pytest.fixture
def rental(server: RealtimeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    """Somebody at the car rental, who has not said who they are."""
    folder = ROOT / "examples" / "car_rental"
    monkeypatch.syspath_prepend(str(folder))
    demo, app = (load(monkeypatch, folder / f"{name}.py") for name in ("demo", "app"))
    demo.keep_cars(server)
    made = app.create_app({"RTPOOL_URL": server.url, "RTPOOL_API_KEY": server.api_key, "TESTING": True})
    yield made.test_client()
    sys.modules.pop("cars")


def load(monkeypatch: pytest.MonkeyPatch, path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"car_rental_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # by which Flask finds the app's folder
    spec.loader.exec_module(module)
    return module


def test_a_renter_reads_followed_cars_only_and_not_who_has_them(rental: FlaskClient) -> None:
    assert b"Ada Lindgren" not in rental.get("/").data
    assert rental.get("/cars").json == []
    rental.post("/cars/2/follow", data={"follow": "yes"})
    assert rental.get("/cars").json == [{"id": 2, "model": "VW ID.3", "plate": "B-ID 330", "status": "rented"}]
    assert b"Ada Lindgren" not in rental.get("/").data
    rental.post("/cars/2/follow", data={"follow": "no"})
    assert rental.get("/cars").json == []


def test_who_is_no_admin_reads_and_changes_nothing_of_theirs(rental: FlaskClient) -> None:
    rental.post("/admin", data={"password": "guess"})
    assert b"Ada Lindgren" not in rental.get("/admin").data
    assert rental.get("/admin/cars").status_code == 403
    assert rental.get("/admin/stream").status_code == 403
    assert rental.post("/admin/cars/1", data={"status": "rented"}).status_code == 403
    rental.post("/cars/1/follow", data={"follow": "yes"})
    assert rental.get("/cars").json[0]["status"] == "available"


def test_an_admin_changes_cars_that_are_there_to_what_a_car_can_be(rental: FlaskClient) -> None:
    rental.post("/admin", data={"password": "demo"})
    assert rental.post("/admin/cars/1", data={"status": "sold"}).status_code == 400
    assert rental.post("/admin/cars/99", data={"status": "rented"}).status_code == 404
    assert rental.post("/admin/cars/1", data={"status": "rented"}).status_code == 302
    assert [car["status"] for car in rental.get("/admin/cars").json][:2] == ["rented", "rented"]
    rental.post("/admin/cars/2", data={"status": "available"})
    assert rental.get("/admin/cars").json[1]["customer"] is None


def test_a_database_that_does_not_answer_is_told_in_words(rental: FlaskClient, server: RealtimeServer) -> None:
    server.close()
    answer = rental.get("/")
    assert answer.status_code == 503
    assert b"The database does not answer" in answer.data
