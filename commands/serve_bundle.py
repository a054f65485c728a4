"""`make serve-bundle`: serve an edge bundle on a box of its own, without network, until Ctrl-C.

    python -m commands.serve_bundle FILE --key PUBLIC [--port 8080] [--check]

The archive is verified in whole before a byte of it is used. Its files are unpacked once, into a folder below `var/bundles` that is named
by the manifest's hash, and verified again at each start; beside them lie the private database, with the replies and what is said
of them, and the logs. Then the engine, the guard's model where there is one, and the web process start, which has `/v1` and the probes
of its health, and no pages.

What the bundle decides (model, rules, actions and thresholds of the guard, limits of prompts) no setting of the device changes. Its own
are ports, threads, timeouts, how it logs and who may call.
"""

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path

from bundle.archive import check, unpack
from bundle.contents import read_settings, require_base
from bundle.device import ensure_key, environment, install
from bundle.manifest import Manifest
from bundle.signing import public_key
from commands import processes
from commands.bundle import LIBRARIES, as_text
from commands.database import migrate
from commands.run import keep_up
from core.db import Database
from core.errors import ArtifactError, DunnockError
from core.settings import Settings, get_settings
from policy.base import base_model_path

FACTORY = "app:create_edge_gateway"
READY_S = 60.0


def main() -> int:
    """Verify, unpack, start, and stay up."""
    options = _options()
    try:
        key = public_key(options.key)
        if options.check:
            print(as_text(check(options.file, key)))
            return 0
        settings = get_settings()
        manifest, place = unpack(options.file, key, settings.var_dir / "bundles")
        settings = _of_the_device(manifest, place, options.port)
        if manifest.needs is not None:
            require_base(base_model_path(settings), manifest.needs)
        secret = _prepare(manifest, place, options.api_key_file)
        processes.require_free("web server", settings.host, settings.web_port, "--port")
    except DunnockError as error:
        print(f"{options.file}: {error.message}", file=sys.stderr)
        return 1
    children = [processes.engine(settings)]
    if manifest.guard.model_sha256 is not None:
        children.append(processes.guard(settings))
    children.append(processes.web(settings, FACTORY))
    waited = [(child, processes.health_url(child, settings), processes.ENGINE_START_S) for child in children]
    waited.append((children[-1], f"http://{settings.host}:{settings.web_port}/readyz", READY_S))
    return keep_up(children, waited, lambda: _welcome(manifest, settings, secret))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve an edge bundle, offline.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--key", type=Path, required=True, help="the public key that it has to be signed with")
    parser.add_argument("--port", type=int, help="of the chat API; otherwise DUNNOCK_WEB_PORT")
    parser.add_argument(
        "--api-key-file", type=Path, help="holds the API key; otherwise one is made at the first start, and printed"
    )
    parser.add_argument("--check", action="store_true", help="verify it, print its figures, and serve nothing")
    return parser.parse_args()


def _of_the_device(manifest: Manifest, place: Path, port: int | None) -> Settings:
    """This process's settings, and those of what it starts, with all that the bundle decides; ports of loopback are free ones."""
    os.environ |= environment(manifest, read_settings(place / "artifacts"), place)
    os.environ |= {"DUNNOCK_ENGINE_PORT": str(processes.free_port()), "DUNNOCK_GUARD__PORT": str(processes.free_port())}
    if port is not None:
        os.environ["DUNNOCK_WEB_PORT"] = str(port)
    get_settings.cache_clear()
    return get_settings()


def _prepare(manifest: Manifest, place: Path, key_file: Path | None) -> str | None:
    """The database, and the API key if a new one was made."""
    try:
        given = key_file.read_text(encoding="utf-8").strip() if key_file else None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the API key in {key_file} cannot be read: {error}") from error
    db = Database(get_settings().db_url)
    try:
        migrate(db)
        with db.session() as session:
            install(session, manifest, place / "artifacts")
            return ensure_key(session, given)
    finally:
        db.dispose()


def _welcome(manifest: Manifest, settings: Settings, secret: str | None) -> None:
    print(as_text(manifest))
    print(f"  chat API  http://{settings.host}:{settings.web_port}/v1\n  data      {settings.var_dir}")
    if secret is not None:
        print(f"  API key   {secret}   (shown once)")
    here = {name: importlib.metadata.version(name) for name in LIBRARIES}
    if apart := [
        f"{name} {found} (made with {manifest.versions.get(name)})"
        for name, found in here.items()
        if found != manifest.versions.get(name)
    ]:
        print(f"  other versions here: {', '.join(apart)}")
    print("  Ctrl-C ends all", flush=True)


if __name__ == "__main__":
    sys.exit(main())
