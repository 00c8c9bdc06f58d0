"""What is done about changes: by any worker, once for each."""

from app import realtime
from celery import shared_task
from celery.utils.log import get_task_logger

log = get_task_logger(__name__)


@shared_task
def tell_renter(car: dict, at: str) -> None:
    # By REST: it needs no join, so a task that says one thing opens no socket.
    realtime.pool.broadcast("renters", "told", {"car": car, "at": at})
    log.info("told the renter of car %s: %s", car["id"], car["status"])


@shared_task
def catch_up(topic: str, since: str, cause: str) -> None:
    """Changes may have been lost: read the table, as `select * from cars where updated_at >= since` would."""
    log.warning("read anew what changed in %s since %s: %s", topic, since, cause)
