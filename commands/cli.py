"""The flask commands: `python -m flask --app app COMMAND`. `docs/commands.md` lists them; a test keeps it complete."""

import json
import logging
from pathlib import Path
from typing import Any

import click
from flask import Flask

from access.audit import record
from access.keys import create_key
from access.models import ROLES
from access.names import COMMAND_LINE
from access.people import create_person, find_login
from access.tenants import Agreed, create_tenant, tenant_id_of
from commands.database import prepare
from core.errors import DunnockError, NotFound
from core.settings import Settings
from core.web import runtime
from feedback.consent import user_key
from feedback.erasure import Erased, erase_user, expire
from feedback.exchange import loading, reading
from feedback.exchange.exporting import FORMS, Form, export_file
from feedback.exchange.importing import import_file
from feedback.models import KINDS
from finetune.cycle import reopen_cycle, request_cycle
from finetune.events import tell_promoted
from policy.client import verify_adapter
from policy.versions import active_version
from policy.versions import rollback as roll_back

ERRORS_SHOWN = 20


class Command(click.Command):
    """A command whose domain errors are one line on stderr and exit status 1, not a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DunnockError as error:
            raise click.ClickException(error.message) from error


def install(app: Flask) -> None:
    """Add the commands to an app."""
    people_and_data = (migrate, person_add, key_add, tenant_add, import_pairs, import_tasks, export_pairs)
    for command in (*people_and_data, retention, erase, cycle, collect, rollback, trial, search, bundle_key, bundle):
        app.cli.add_command(command)


@click.command("migrate", cls=Command)
def migrate() -> None:
    """Bring the database up to date: schema, starter rules, the version "base"."""
    prepare(runtime().db, runtime().settings)
    click.echo("The database is up to date.")


@click.command("person-add", cls=Command)
@click.argument("login")
@click.option("--role", type=click.Choice(ROLES), default="annotator", show_default=True)
@click.password_option(help="At least 10 characters; asked for when it is not given.")
def person_add(login: str, role: str, password: str) -> None:
    """Add somebody who signs in."""
    with runtime().db.session() as session:
        person = create_person(session, login, password, role)
        record(session, COMMAND_LINE, "person.add", f"person:{person.id}", after={"login": login, "role": role})
    click.echo(f"{login} can sign in ({role}).")


@click.command("key-add", cls=Command)
@click.argument("login")
@click.option("--name", default="command line", show_default=True, help="What the key is for.")
@click.option("--scopes", default="chat feedback", show_default=True)
def key_add(login: str, name: str, scopes: str) -> None:
    """Make an API key for a person; it is shown this once."""
    with runtime().db.session() as session:
        person = find_login(session, login)
        if person is None:
            raise NotFound(f"nobody is called {login!r}; add them with `make person LOGIN=…`")
        key, secret = create_key(session, person, name, scopes)
        record(session, COMMAND_LINE, "key.add", f"api_key:{key.id}", after={"login": login, "scopes": scopes})
    click.echo(secret)


@click.command("tenant-add", cls=Command)
@click.argument("name")
@click.option("--key", default="", help="Its lasting name; made of NAME where it is left out.")
@click.option("--requests-per-minute", type=int, default=None, help="Over all its keys; none: no limit.")
@click.option("--tokens-per-day", type=int, default=None, help="Of prompts and completions; none: no limit.")
def tenant_add(name: str, key: str, requests_per_minute: int | None, tokens_per_day: int | None) -> None:
    """Add a tenant; `key-add tenant:KEY` then makes its keys."""
    with runtime().db.session() as session:
        agreed = Agreed(name, requests_per_minute, tokens_per_day)
        tenant = create_tenant(session, COMMAND_LINE, agreed, key)
    click.echo(f"The tenant {tenant.key} is made; `key-add tenant:{tenant.key}` makes a key for its programs.")


@click.command("import", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--limit", type=int, default=None, help="Read only the first n rows.")
def import_pairs(file: Path, limit: int | None) -> None:
    """Import human preference pairs: HH-RLHF, JSONL or Hugging Face prompt/chosen/rejected."""
    report = import_file(runtime().db, file, limit=limit)
    click.echo(f"{report.imported} imported, {report.already_there} there already, {len(report.errors)} left out")
    _tell(report.errors)


@click.command("import-tasks", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--form", type=click.Choice(reading.FORMS), default="auto", show_default=True)
@click.option("--kind", type=click.Choice(KINDS), help="Of rows that do not say it.")
@click.option("--rule", help="Of rule checks and probes that name none: slug, or slug@version.")
@click.option("--pool", help="Where rows that do not say it wait.")
@click.option("--priority", type=int, help="Of rows that do not say it.")
@click.option("--required-n", type=int, help="Judgments wanted, of rows that do not say it.")
@click.option("--field", "fields", multiple=True, help="Which field is which: prompt=NAME, a=NAME, b=NAME, …")
@click.option("--limit", type=int, default=None, help="Read only the first n rows.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def import_tasks(file: Path, fields: tuple[str, ...], limit: int | None, dry_run: bool, **said: Any) -> None:
    """Import tasks with their judgments: our JSONL, a Hugging Face dataset, Label Studio's or Argilla's export."""
    wanted = reading.Wanted(fields=dict(field.partition("=")[::2] for field in fields), **said)
    rows = reading.read_tasks(file, wanted, limit)
    report = loading.load(runtime().db, rows, reading.name_of(file), dry_run=dry_run)
    click.echo(
        f"{'dry run: ' if dry_run else ''}{report.tasks} tasks imported, {report.tasks_there} there already; "
        f"{report.judgments} judgments imported, {report.judgments_there} there already; {len(report.errors)} left out"
    )
    _tell(report.errors)
    if not report.good:
        raise SystemExit(1)


def _tell(errors: list[tuple[int, str]]) -> None:
    for line, reason in errors[:ERRORS_SHOWN]:
        click.echo(f"  line {line}: {reason}", err=True)
    if len(errors) > ERRORS_SHOWN:
        click.echo(f"  … and {len(errors) - ERRORS_SHOWN} more", err=True)


@click.command("export", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--form", type=click.Choice(FORMS), default="preference", show_default=True)
@click.option("--simulated", is_flag=True, help="Take simulated judgments too (they are marked).")
def export_pairs(file: Path, form: Form, simulated: bool) -> None:
    """Export preferences, completions with labels, or tasks with all judgments: .jsonl, .json or .parquet."""
    n = export_file(runtime().db, file, form=form, include_simulated=simulated)
    click.echo(f"{n} {'preferences' if form in ('preference', 'hh-rlhf') else 'rows'} written to {file}")


@click.command("retention", cls=Command)
@click.option("--days", type=click.IntRange(min=0), default=None, help="In the place of the setting; 0: for ever.")
@click.option("--dry-run", is_flag=True, help="Say how many would go, and take none away.")
def retention(days: int | None, dry_run: bool) -> None:
    """Take away served texts whose time is over and that nobody judged, as the worker does every night."""
    kept = runtime().settings.privacy.retention_days if days is None else days
    click.echo(_told(expire(runtime().db, kept, COMMAND_LINE, dry_run=dry_run), dry_run=dry_run))


@click.command("erase-user", cls=Command)
@click.argument("user")
@click.option("--tenant", default=None, help="The key of the tenant whose user it is; none: the house's.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and take nothing away.")
def erase(user: str, tenant: str | None, dry_run: bool) -> None:
    """Take away all texts of an end user, named as chat calls do in `user`, judged or not."""
    with runtime().db.session() as session:
        key = user_key(runtime().settings.user_secret(), tenant_id_of(session, tenant), user)
        erased = erase_user(session, key or "", COMMAND_LINE, dry_run=dry_run)
    click.echo(_told(erased, dry_run=dry_run))
    if erased.snapshots:
        click.echo(f"These frozen snapshots hold such a text; remove their folders: {erased.snapshots}")


def _told(erased: Erased, *, dry_run: bool) -> str:
    if dry_run:
        return f"dry run: {erased.completions} completions would be emptied"
    return f"{erased.completions} completions and {erased.prompts} prompts emptied, {erased.tasks} tasks cancelled"


@click.command("cycle", cls=Command)
@click.option("--request", "only_request", is_flag=True, help="Only ask for it; a running worker takes it up.")
@click.option("--reopen", type=int, default=None, help="Take this failed cycle up again instead.")
def cycle(only_request: bool, reopen: int | None) -> None:
    """Run a round of the loop now (or go on with the unfinished one)."""
    settings, db = runtime().settings, runtime().db
    with db.session() as session:
        wanted = reopen_cycle(session, reopen) if reopen else request_cycle(session, settings, "manual")
        click.echo(f"cycle {wanted.id} is {wanted.state}")
    if not only_request:
        _run(settings, wanted.id)


def _run(settings: Settings, cycle_id: int) -> None:
    from commands.progress import run_with_progress

    logging.getLogger("dunnock").setLevel(logging.WARNING)
    done = run_with_progress(runtime().db, settings)
    if done is None:
        raise NotFound(f"cycle {cycle_id} is over already")
    click.echo(f"cycle {done.id}: {done.state} ({done.outcome})")
    if done.state not in ("promoted", "done"):
        raise SystemExit(1)


@click.command("collect", cls=Command)
def collect() -> None:
    """Have the active policy answer the seed prompts, and queue its completions for people to judge."""
    settings, db = runtime().settings, runtime().db
    with db.session() as session:
        wanted = request_cycle(session, settings, "collect", stages=["collect"])
    _run(settings, wanted.id)


@click.command("rollback", cls=Command)
@click.option("--to", default=None, help="A version that was active once; default: the former one.")
@click.option("--reason", default="", help="Why; kept with the promotion.")
def rollback(to: str | None, reason: str) -> None:
    """Bring the former policy version back, at once, also to the running server."""
    with runtime().db.session() as session:
        row = roll_back(session, actor=COMMAND_LINE, reason=reason, to=to)
        verify_adapter(active_version(session), runtime().settings.artifact_dir)  # a damaged one is not brought back
        tell_promoted(session, row)
        record(session, COMMAND_LINE, "policy.rollback", str(row.policy_version_id), before={"active": row.former_id})
        click.echo(f"{active_version(session).name} is active again")


FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=Path("var/trial"), show_default=True)
PORT = click.option("--engine-port", type=int, default=8094, show_default=True, help="Port of the trials' engine.")
SET = click.option("--set", "words", multiple=True, metavar="STAGE.NAME=VALUE", help="Settings that differ.")
REWARD = click.option("--reward", is_flag=True, help="Train a reward model too.")


@click.command("trial", cls=Command)
@SET
@REWARD
@FOLDER
@PORT
def trial(words: tuple[str, ...], reward: bool, folder: Path, engine_port: int) -> None:
    """An update with other settings, measured on seed topics that were held out from it."""
    from commands.trial import open_trials, overrides_of, run_trial

    overrides = overrides_of(words)
    with open_trials(folder, engine_port) as trials:
        click.echo(json.dumps(run_trial(trials, overrides, reward=reward), indent=1))


@click.command("search", cls=Command)
@click.option(
    "--over", "ranges", multiple=True, metavar="STAGE.NAME=LOW..HIGH[:log] or =ONE|OTHER", help="What is tried."
)
@SET
@click.option("--trials", "wanted", type=click.IntRange(min=1), default=20, show_default=True, help="In all.")
@click.option("--objective", type=click.Choice(("safety", "preference", "reward")), default="safety", show_default=True)
@REWARD
@click.option("--name", default="", help="Of the search; one that was begun goes on.  [default: made of what is tried]")
@click.option("--seed", type=int, default=0, show_default=True)
@FOLDER
@PORT
def search(
    ranges: tuple[str, ...],
    words: tuple[str, ...],
    wanted: int,
    objective: str,
    reward: bool,
    name: str,
    seed: int,
    **place: Any,
) -> None:
    """Try settings out, one trial after the other, and report which were best on held-out seed topics."""
    from commands.search import DEFAULT_RANGES, Plan, as_text, read_range
    from commands.search import search as run_search
    from commands.trial import open_trials, overrides_of

    plan = Plan([read_range(word) for word in ranges or DEFAULT_RANGES], overrides_of(words), objective, reward)
    with open_trials(**place) as trials:
        found = run_search(trials, plan, wanted, name=name, seed=seed)
    click.echo(as_text(found))
    click.echo(f"Also in {found['folder']}, as {found['name']}.md and .json")


@click.command("bundle-key", cls=Command)
@click.option(
    "--private", type=click.Path(path_type=Path), help="Where the key goes that signs.  [default: the setting's]"
)
@click.option(
    "--public", type=click.Path(path_type=Path), help="Where the key goes that verifies.  [default: beside it]"
)
def bundle_key(private: Path | None, public: Path | None) -> None:
    """Make the pair of keys that edge bundles are signed and verified with."""
    from bundle.signing import make_keys

    private = private or runtime().settings.bundle_key
    public = public or private.with_name("public.pem")
    known_as = make_keys(private, public)
    click.echo(
        f"{private} signs; keep it here. {public} verifies; give it to the devices. The pair is {known_as[:16]}…."
    )


@click.command("bundle", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--policy", default=None, help="A version's name.  [default: the active one]")
@click.option("--form", type=click.Choice(("gguf", "adapter")), default="gguf", show_default=True)
@click.option(
    "--quantisation",
    type=click.Choice(("f32", "f16", "bf16", "q8_0", "q4_1")),
    help="Of form gguf.  [default: the setting's]",
)
@click.option("--tenant", default=None, help="Key of the tenant whose rules go along beside the house's.")
@click.option(
    "--prompts", type=click.IntRange(min=0), help="That quality is measured on; 0: all.  [default: the setting's]"
)
@click.option("--key", type=click.Path(path_type=Path), help="The private key.  [default: the setting's]")
def bundle(
    file: Path,
    policy: str | None,
    form: Any,
    quantisation: Any,
    tenant: str | None,
    prompts: int | None,
    key: Path | None,
) -> None:
    """Write a policy version with its rules and its guard as one signed file for a device without a connection."""
    from commands.bundle import Wanted, as_text, make_bundle

    settings = runtime().settings
    wanted = Wanted(
        form,
        quantisation or settings.bundle.quantisation,
        settings.bundle.prompts if prompts is None else prompts,
        policy,
        tenant,
    )
    manifest = make_bundle(runtime().db, settings, wanted, file, key or settings.bundle_key)
    click.echo(as_text(manifest))
    click.echo(f"{file} is written, {file.stat().st_size:,} bytes, signed.")
