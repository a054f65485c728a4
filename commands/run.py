"""`make run`: migrate, start engine, web, worker and the guard's model, print the URLs, keep them up until Ctrl-C.

python -m commands.run
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from commands import processes
from commands.database import first_admin, prepare
from core.db import Database
from core.errors import DunnockError
from core.settings import get_settings

POLL_S = 1.0
MAX_BACKOFF_S = 30.0


def main() -> int:
    """Run until ended; a process that dies is started again, a little later each time."""
    settings = get_settings()
    try:
        db = Database(settings.db_url)
        prepare(db, settings)
        processes.require_free("web server", settings.host, settings.web_port, "DUNNOCK_WEB_PORT")
        if not settings.engine_url:
            processes.require_free("engine", "127.0.0.1", settings.engine_port, "DUNNOCK_ENGINE_PORT")
        guarded = processes.guard_is_wanted(settings)
        if guarded:
            processes.require_free("guard's model", "127.0.0.1", settings.guard.port, "DUNNOCK_GUARD__PORT")
        several = settings.best_of.n > 1
        if several:
            processes.require_free("reward model", "127.0.0.1", settings.best_of.port, "DUNNOCK_BEST_OF__PORT")
        settings.session_secret()  # made before several web workers would each make one
        admin = first_admin(db)
        db.dispose()
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1
    children = [processes.web(settings), processes.worker(settings)]
    if not settings.engine_url:
        children.insert(0, processes.engine(settings))
    if guarded:
        children.append(processes.guard(settings))
    if several:
        children.append(processes.scoring(settings))
    url = f"http://{settings.host}:{settings.web_port}"
    waited = [(next(c for c in children if c.name == "web"), f"{url}/healthz", processes.WEB_START_S)]
    if not settings.engine_url:
        waited.append((children[0], processes.engine_health_url(settings), processes.ENGINE_START_S))
    return keep_up(children, waited, lambda: _welcome(url, settings.var_dir, admin))


def keep_up(
    children: list[processes.Child], waited: Sequence[tuple[processes.Child, str, float]], ready: Callable[[], None]
) -> int:
    """Start processes, wait, and keep them up until Ctrl-C or SIGTERM; the exit status.

    Args:
        waited: whom to wait for, the URL that answers then, and for how many seconds at most.
        ready: called once all of these answer.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for child in children:
            child.start()
        print("Starting …", flush=True)
        for child, url, limit_s in waited:
            processes.wait_ready(child, url, limit_s)
        ready()
        _restart_forever(children)
    except KeyboardInterrupt:
        pass
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1
    finally:
        for child in reversed(children):
            child.stop()
    return 0


def _welcome(url: str, var_dir: Path, admin: tuple[str, str] | None) -> None:
    print(f"  pages     {url}/\n  chat API  {url}/v1\n  ready?    {url}/readyz\n  logs      {var_dir / 'logs'}")
    if admin is not None:
        print(f"  sign in   {admin[0]} / {admin[1]}   (shown once; nobody could sign in yet)")
    elif (var_dir / "first_admin").exists():
        print(f"  sign in   with the name and password in {var_dir / 'first_admin'}, which the demo made")
    print("  an API key: make key LOGIN=admin      Ctrl-C ends all", flush=True)


def _restart_forever(children: list[processes.Child]) -> None:
    again: dict[str, float] = {}
    while True:
        time.sleep(POLL_S)
        for child in children:
            if child.alive():
                continue
            if child.name not in again:
                pause = min(MAX_BACKOFF_S, 2.0**child.restarts)
                again[child.name] = time.monotonic() + pause
                print(f"{child.name} ended; starting it again in {pause:.0f} s (log: {child.log})", flush=True)
            elif time.monotonic() >= again[child.name]:
                del again[child.name]
                child.restarts += 1
                child.start()


if __name__ == "__main__":
    sys.exit(main())
