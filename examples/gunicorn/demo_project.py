"""In place of a Supabase project: an embedded server in which a car changes twice a second. Ends with its stdin."""

import itertools
import sys
import threading

from rtpool.testing import RealtimeServer


def main() -> None:
    with RealtimeServer() as server:
        print(server.url, server.api_key, flush=True)
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        for number in itertools.count():
            if ended.wait(0.5):
                return
            car = {"id": number % 9 + 1, "status": ("free", "rented", "in service")[number % 3]}
            server.change("public", "cars", "UPDATE", car, {"id": car["id"]})


if __name__ == "__main__":
    main()
