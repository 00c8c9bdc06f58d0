"""
A Flask app whose Celery tasks react to changes, each change once.

Web workers are many and Celery's are many; whoever of them listened would hear every change. So none of them does: one
process listens (`flask enqueue-changes`) and does nothing but put tasks into the queue, which gives each to one worker.
"""

import os

import click
from celery import Celery, Task
from flask import Flask
from flask.cli import with_appcontext

import rtpool
from rtpool.flask import Realtime

realtime = Realtime()


@realtime.on_changes("cars", "UPDATE")
def changed(change: rtpool.PostgresChange) -> None:
    import tasks

    tasks.tell_renter.delay(dict(change.record), str(change.commit_timestamp))


@realtime.on_gap()
def missed(gap: rtpool.Gap) -> None:
    import tasks

    tasks.catch_up.delay(gap.topic, gap.lost_from.isoformat(), gap.cause)


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["RTPOOL_AUTOSTART"] = False  # web workers serve requests; `flask enqueue-changes` starts the callbacks
    realtime.init_app(app)
    make_celery(app)
    app.cli.add_command(enqueue_changes)

    @app.get("/")
    def index() -> dict[str, int]:
        return {"pid": os.getpid()}

    return app


@click.command("enqueue-changes")
@with_appcontext
def enqueue_changes() -> None:
    """Listen, and have a task done for each change; run it once. Ctrl-C or SIGTERM ends it."""
    realtime.start()
    realtime.pool.run_forever(handle_sigterm=True)


def make_celery(app: Flask) -> Celery:
    """As Flask's documentation has it: a task is run in an app context."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery(app.name, task_cls=FlaskTask, include=["tasks"])
    celery.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
    if broker := os.environ.get("CELERY_BROKER_URL"):
        celery.conf.broker_url = broker
    else:  # a folder, for the demonstration: a broker that needs no service
        folder = os.environ["CELERY_FOLDER"]
        celery.conf.broker_url = "filesystem://"
        celery.conf.broker_transport_options = {
            "data_folder_in": folder, "data_folder_out": folder, "control_folder": f"{folder}/control",
        }  # fmt: skip
    celery.set_default()
    app.extensions["celery"] = celery
    return celery
