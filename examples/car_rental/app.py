"""
Car rental notifications: renters follow cars and see their status change, admins see all cars and how many are where.

Two views on one subscription: however many browsers look, a process of this app joins one channel.

    python examples/car_rental/app.py

runs it with a database in memory; with SUPABASE_URL and SUPABASE_KEY it runs on that project, see schema.sql.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from collections import Counter
from typing import Any

from cars import STATUSES, Cars, Unavailable
from flask import Flask, Response, abort, jsonify, redirect, render_template, request, session, url_for

import rtpool
from rtpool.flask import Changes, Realtime

realtime = Realtime()

#: What is asked for upstream. Equal for both kinds of browsers, so both get their part of one and the same join.
CARS = {"broadcasts": None, "changes": Changes("cars")}

#: What renters may know of a car; not, for example, who has it.
PUBLIC = ("id", "model", "plate", "status")


def create_app(config: dict[str, Any] | None = None) -> Flask:
    """The app; also from gunicorn, as ``app:create_app()``. Settings: FLASK_<NAME> in the environment, or `config`."""
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY="only-for-this-example",
        ADMIN_PASSWORD="demo",
        SESSION_COOKIE_NAME="car_rental",
        SESSION_COOKIE_SAMESITE="Lax",  # no other site can send a form in somebody's name
        RTPOOL_URL=os.environ.get("SUPABASE_URL"),
        RTPOOL_API_KEY=os.environ.get("SUPABASE_KEY"),
    )
    app.config.from_prefixed_env()
    app.config.update(config or {})
    realtime.init_app(app)
    cars = Cars(app.config["RTPOOL_URL"], app.config["RTPOOL_API_KEY"])
    app.jinja_env.globals["statuses"] = STATUSES
    app.after_request(harden)
    app.register_error_handler(Unavailable, lambda error: (render_template("away.html"), 503))
    add_renters(app, cars)
    add_admins(app, cars)
    return app


def add_renters(app: Flask, cars: Cars) -> None:
    """Who rents: follows cars, and is told of those alone."""

    def followed() -> set[int]:
        return set(session.get("followed", ()))

    def as_renters_see(car: dict[str, Any]) -> dict[str, Any]:
        return {name: car.get(name) for name in PUBLIC}

    @app.get("/")
    def renter() -> str:
        rows = cars.all()
        mine, others = ([car for car in rows if (car["id"] in followed()) is wanted] for wanted in (True, False))
        return render_template("renter.html", mine=mine, others=others)

    @app.post("/cars/<int:car>/follow")
    def follow(car: int) -> Any:
        wanted = followed() | {car} if request.form.get("follow") == "yes" else followed() - {car}
        session["followed"] = sorted(wanted)
        return redirect(url_for("renter"))

    @app.get("/cars")
    def followed_cars() -> Response:
        return jsonify([as_renters_see(car) for car in cars.all() if car["id"] in followed()])

    @app.get("/stream")
    def renter_stream() -> Response:
        mine = followed()

        def view(change: rtpool.PostgresChange) -> dict[str, Any] | None:
            car = change.record or change.old_record
            return {"type": change.type, "car": as_renters_see(car)} if car.get("id") in mine else None

        return realtime.stream("car-rental", **CARS, view=view)


def add_admins(app: Flask, cars: Cars) -> None:
    """Who runs the place: sees everything, and changes it."""

    def is_admin() -> bool:
        return bool(session.get("admin"))

    def admins_only() -> None:
        if not is_admin():
            abort(403)

    @app.get("/admin")
    def admin() -> str:
        if not is_admin():
            return render_template("enter.html", password=app.config["ADMIN_PASSWORD"], wrong=False)
        rows = cars.all()
        return render_template("admin.html", cars=rows, counts=Counter(car["status"] for car in rows))

    @app.post("/admin")
    def enter() -> Any:
        given, right = request.form.get("password", ""), str(app.config["ADMIN_PASSWORD"])
        session["admin"] = hmac.compare_digest(given.encode(), right.encode())
        if not is_admin():
            return render_template("enter.html", password=right, wrong=True), 403
        return redirect(url_for("admin"))

    @app.get("/admin/cars")
    def all_cars() -> Response:
        admins_only()
        return jsonify(cars.all())

    @app.post("/admin/cars/<int:car>")
    def change_status(car: int) -> Any:
        admins_only()
        status = request.form.get("status")
        if status not in STATUSES:
            abort(400)
        if not cars.set_status(car, status):
            abort(404)
        return redirect(url_for("admin"))

    @app.get("/admin/stream")
    def admin_stream() -> Response:
        def view(change: rtpool.PostgresChange) -> dict[str, Any]:
            return {"type": change.type, "car": dict(change.record or change.old_record)}

        return realtime.stream("car-rental", **CARS, authorize=is_admin, view=view)


def harden(response: Response) -> Response:
    """Nothing from elsewhere runs in these pages, and nobody frames them."""
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
    return response


def main() -> None:
    """Serve it until Ctrl-C; PORT says where."""
    with contextlib.ExitStack() as stack:
        config = {}
        if not (os.environ.get("SUPABASE_URL") and os.environ.get("SUPABASE_KEY")):
            from demo import project

            config["RTPOOL_URL"], config["RTPOOL_API_KEY"] = stack.enter_context(project())
        app = create_app(config)
        port = int(os.environ.get("PORT", "5050"))
        print(f"Renters: http://127.0.0.1:{port}/   Admins: http://127.0.0.1:{port}/admin", flush=True)
        app.run(port=port, threaded=True)
        with app.app_context():
            realtime.close()


if __name__ == "__main__":
    main()
