"""A private channel with a token callable, and replay of what the database sent during an interruption."""

from _project import project

import rtpool

with project() as (url, key):

    def token() -> str:
        """Yours asks your auth server; it is called on a thread of its own, and again ahead of expiry."""
        return key

    with rtpool.RealtimePool(url, api_key=key, access_token=token) as pool:
        orders = pool.channel("orders", private=True, replay=True)
        orders.on_broadcast("*", lambda message: print(message.event, message.replayed))
        orders.on_gap(lambda gap: print(gap.cause, "replayed:", gap.replay, "more may be missing:", gap.truncated))
        orders.on_status(lambda change: print(change.status, change.error or ""))
        try:
            orders.subscribe(timeout=15)
        except rtpool.JoinRefused as error:
            raise SystemExit(f"{error.code}: {error.reason}") from None
        print("subscribed:", orders.is_subscribed)
