"""The worker: starts rounds by cron or once enough judgments are new, and runs them one at a time. A thread of it sends
webhooks.

    python -m finetune.worker            until it is ended
    python -m finetune.worker --once     run what is requested now, then end

Any number of workers may run on any number of hosts: the lease lets one of them run a cycle, and another
goes on with it when that one falls silent.
"""

import argparse
import logging
import re
import signal
import threading

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy.exc import OperationalError

from access.names import WORKER
from core import logs
from core.db import Database
from core.errors import Conflict, LeaseLost, SettingsError
from core.settings import Settings, get_settings
from feedback.erasure import expire
from feedback.webhooks.sending import Sender
from finetune.cycle import new_judgments, request_cycle, run_cycle
from finetune.models import Cycle
from finetune.runner import in_own_process

DAILY = "30 3 * * *"
"""When texts are taken away whose time is over, in UTC."""
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
log = logging.getLogger("dunnock.worker")


class Worker:
    """Requests cycles on schedule and runs whatever is requested.

    Args:
        wake: set from outside to look at once; also ends the wait when the worker stops.
    """

    def __init__(self, db: Database, settings: Settings) -> None:
        self.db, self.settings = db, settings
        self.wake, self.stopping = threading.Event(), threading.Event()
        self.scheduler = BackgroundScheduler(timezone="UTC")
        if settings.cycle_cron:
            self.scheduler.add_job(self.request, cron_trigger(settings.cycle_cron), args=["cron"], coalesce=True)
        self.scheduler.add_job(self.expire, cron_trigger(DAILY), coalesce=True, misfire_grace_time=None)

    def request(self, reason: str) -> None:
        """Ask for a round and look at once."""
        with self.db.session() as session:
            request_cycle(session, self.settings, reason)
        self.wake.set()

    def expire(self) -> None:
        """Take away the texts whose time is over."""
        erased = expire(self.db, self.settings.privacy.retention_days, WORKER)
        if erased.completions:
            log.info(
                "%d completions and %d prompts were emptied: their time is over", erased.completions, erased.prompts
            )

    def request_if_enough(self) -> bool:
        """Ask for a round once `cycle_min_judgments` judgments stand in no snapshot."""
        wanted = self.settings.cycle_min_judgments
        if wanted <= 0:
            return False
        with self.db.read() as session:
            n = new_judgments(session, include_simulated=self.settings.snapshot.include_simulated)
        if n < wanted:
            return False
        self.request("judgments")
        return True

    def run_requested(self) -> Cycle | None:
        """Run the oldest unfinished cycle here, unless another worker does."""
        try:
            cycle = run_cycle(self.db, self.settings, in_own_process(self.db, self.settings))
        except (Conflict, LeaseLost) as error:
            log.debug("%s", error.message)
            return None
        if cycle is not None:
            log.info("cycle %d: %s (%s)", cycle.id, cycle.state, cycle.outcome)
        return cycle

    def run_forever(self) -> None:
        """Look, run, wait; a database that is away for a while is waited for."""
        self.scheduler.start()
        sender = Sender(self.db, self.settings)
        sender.start()
        try:
            while not self.stopping.is_set():
                try:
                    self.request_if_enough()
                    ran = self.run_requested()
                except OperationalError as error:
                    log.warning("the database does not answer: %s", error.orig)
                    ran = None
                if ran is None:
                    self.wake.wait(self.settings.cycle_poll_s)
                    self.wake.clear()
        finally:
            self.scheduler.shutdown(wait=False)
            sender.stop()

    def stop(self) -> None:
        """End after the current look; a running stage is ended with the process and resumed later."""
        self.stopping.set()
        self.wake.set()


def cron_trigger(expression: str) -> CronTrigger:
    """A trigger in UTC from a five-field cron expression; days of the week count as in cron, 0 and 7 are Sunday.

    Raises:
        SettingsError: the expression cannot be read.
    """
    try:
        return CronTrigger.from_crontab(_with_named_days(expression), timezone="UTC")
    except ValueError as error:
        raise SettingsError(f"DUNNOCK_CYCLE_CRON={expression!r} is no cron expression: {error}") from error


def _with_named_days(expression: str) -> str:
    """The expression with its days of the week by name: APScheduler's numbers count from Monday, cron's from Sunday."""
    *fields, days = expression.split() or [""]
    return " ".join([*fields, ",".join(_named_days(part) for part in days.split(","))])


def _named_days(part: str) -> str:
    found = re.fullmatch(r"(\*|\d)(?:-(\d))?(?:/(\d+))?", part)
    if found is None or part == "*":
        return part
    first, last, step = found.groups()
    start = 0 if first == "*" else int(first)
    end = int(last) if last else 6 if first == "*" or step else start
    if not start <= end <= 7:
        raise ValueError(f"the days of the week are 0 (Sunday) to 7 (Sunday), not {part}")
    return ",".join(DAYS[day % 7] for day in range(start, end + 1, int(step or 1)))


def main() -> None:
    """Entry of the worker process."""
    parser = argparse.ArgumentParser(description="Run cycles of the loop.")
    parser.add_argument("--once", action="store_true", help="run what is requested now, then end")
    once = parser.parse_args().once
    settings = get_settings()
    logs.configure(settings)
    worker = Worker(Database(settings.db_url), settings)
    if once:
        worker.run_requested()
        return

    def end(*_: object) -> None:
        worker.stop()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    worker.run_forever()


if __name__ == "__main__":
    main()
