"""A Celery application whose broker and results are files of a folder."""

from __future__ import annotations

import pathlib

from celery import Celery


def make_app(folder: pathlib.Path) -> Celery:
    """The same in the worker and in the test, which calls tasks by name."""
    for name in ("queue", "control", "results"):
        (folder / name).mkdir(exist_ok=True)
    app = Celery("tests.servers.tasks", broker="filesystem://", backend=f"file://{folder}/results")
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "data_folder_in": f"{folder}/queue",
            "data_folder_out": f"{folder}/queue",
            "control_folder": f"{folder}/control",
        },
    )
    return app
