"""Where every page is. A page that is not listed here fails `test_every_get_route_is_listed`.

`PAGES` has the addresses of each endpoint that shows a page, in the browser of somebody that `rows.fill` made; `{rule}`
and the like come from there too. `OTHERS` says of every other endpoint with GET what it sends instead. Lines are in the
order of the endpoints' names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One page: its address, and whose browser opens it; with `form`, the page that comes when that is posted there."""

    path: str
    who: str = "admin"
    form: tuple[tuple[str, str], ...] | None = None
    status: int = 200
    empty: bool = False  # it is also there in an empty database
    needs_script: bool = False

    def name(self) -> str:
        """What the test is called."""
        return (
            f"{self.path}{' posted' if self.form is not None else ''}{f' as {self.who}' if self.who != 'admin' else ''}"
        )


def posted(path: str, who: str = "admin", status: int = 200, **fields: str) -> Place:
    """The page that comes when these fields are posted."""
    return Place(path, who, tuple(fields.items()), status)


NOBODY = ""
HOSTILE_WORDS = "«typed: '\"></textarea><svg/onload=window.hit=9>\u2069\u202e»"

PAGES: dict[str, list[Place]] = {
    "access.sign_in_form": [Place("/sign-in", NOBODY, empty=True)],
    "account.all_keys": [Place("/keys", empty=True)],
    "account.show": [Place("/account", empty=True)],
    "api_docs.docs": [Place("/api/docs", NOBODY, empty=True)],
    "audit.index": [Place("/audit", empty=True), Place("/audit?actor=nobody")],
    "console.ask_compare": [Place("/policies/{candidate}/compare")],
    "console.ask_promote": [Place("/policies/{candidate}/promote")],
    "console.ask_rollback": [Place("/rollback")],
    "console.demo_report": [Place("/reports/demo", empty=True)],
    "console.list_cycles": [Place("/cycles", empty=True)],
    "console.list_policies": [Place("/policies", empty=True)],
    "console.show_cycle": [Place("/cycles/{cycle}"), Place("/cycles/{failed}"), Place("/cycles/{running}")],
    "console.show_policy": [Place("/policies/{active}"), Place("/policies/{candidate}"), Place("/policies/base")],
    "feedback.care": [Place("/annotate/care", empty=True)],
    "feedback.last_task": [Place("/annotate/last", "judged")],
    "feedback.next_task": [
        Place("/annotate", "pairwise"),
        Place("/annotate", "ranking"),
        Place("/annotate", "rating"),
        Place("/annotate", "rule_check"),
        Place("/annotate", "correction"),
        Place("/annotate", "probe", needs_script=True),
        Place("/annotate", "settling"),
        Place("/annotate", "warned"),
        Place("/annotate", "idle"),
        Place("/annotate", "paused", status=403),
        Place("/annotate", empty=True),
    ],
    "oidc.callback": [Place("/sign-in/oidc/callback", NOBODY, status=400)],
    "oidc.start": [Place("/sign-in/oidc", NOBODY, status=503)],
    "oidc.start_from_invitation": [Place("/invitation/{invitation}/oidc", NOBODY, status=503)],
    "people.index": [Place("/people", empty=True), Place("/people?q=nobody")],
    "people.list_invitations": [Place("/invitations", empty=True)],
    "people.open_invitation": [Place("/invitation/{invitation}", NOBODY), Place("/invitation/{reset}", NOBODY)],
    "people.show": [Place("/people/{person}"), Place("/people/1")],
    "quality.annotators": [Place("/quality/annotators", empty=True)],
    "quality.ask_standing": [Place("/quality/annotators/{person}/pause"), Place("/quality/annotators/{person}/resume")],
    "quality.flags": [Place("/quality/flags", empty=True)],
    "quality.gold": [Place("/quality/gold", empty=True)],
    "quality.overview": [Place("/quality", empty=True)],
    "quality.settled": [Place("/quality/consensus", empty=True)],
    "rewards.show": [Place("/rewards/{reward}"), Place("/rewards/{rule_reward}")],
    "rule_guard.show": [Place("/rules/{rule}/guard"), Place("/rules/{retired}/guard")],
    "rules.ask_switch": [Place("/rules/{rule}/retire"), Place("/rules/{retired}/restore")],
    "rules.edit_form": [Place("/rules/{rule}/edit")],
    "rules.list_rules": [Place("/rules", empty=True), Place("/rules?state=all"), Place("/rules?q=nothing+like+it")],
    "rules.new_rule": [Place("/rules/new", empty=True)],
    "rules.show_rule": [Place("/rules/{rule}?from=1&to=2"), Place("/rules/{retired}")],
    "rules.show_version": [Place("/rules/{rule}/versions/1")],
    "rules.try_form": [Place("/rules/{rule}/try")],
    "serving.chat": [Place("/chat", needs_script=True, empty=True)],
    "system_prompts.index": [Place("/system-prompts", empty=True), Place("/system-prompts?period=28")],
    "system_prompts.show": [Place("/system-prompts/{system_prompt}?from=1&to=2")],
    "tenants.index": [Place("/tenants", empty=True)],
    "tenants.show": [Place("/tenants/{tenant}")],
    "webhooks.index": [Place("/webhooks", empty=True)],
    "webhooks.show": [Place("/webhooks/{webhook}")],
}

AFTER_FORMS = [
    posted("/account/keys", name=HOSTILE_WORDS, scopes="chat", days="30"),
    posted("/invitations", role="annotator", note=HOSTILE_WORDS),
    posted("/people/{other}/reset"),
    posted("/people/{person}/role", role="reviewer"),
    posted("/sign-in", NOBODY, 401, login=HOSTILE_WORDS, password="wrong"),
    posted("/tenants", status=400, name=HOSTILE_WORDS, key="no key"),
    posted("/tenants/{tenant}", status=400, name="Quiet words", tokens_per_day=HOSTILE_WORDS),
    posted("/tenants/{tenant}/keys", name=HOSTILE_WORDS, scopes="chat", days="30"),
    posted("/rules/{rule}/guard", status=400, threshold=HOSTILE_WORDS, action="off", note=HOSTILE_WORDS),
    posted("/system-prompts", status=400, name=HOSTILE_WORDS, text=HOSTILE_WORDS, note=HOSTILE_WORDS),
    posted("/system-prompts/{system_prompt}", status=409, base="9", text=HOSTILE_WORDS, note=HOSTILE_WORDS),
    posted("/system-prompts/shares", status=404, base="1", other=HOSTILE_WORDS, other_percent="7", note=HOSTILE_WORDS),
    posted("/rules/{rule}/try", turn=HOSTILE_WORDS, reply=HOSTILE_WORDS, quotes=HOSTILE_WORDS),
    posted("/rules/{rule}/edit", status=400, title=HOSTILE_WORDS, kept_text=HOSTILE_WORDS, kept_reason=""),
    posted("/annotate/{rating_token}", "rating", 400, note=HOSTILE_WORDS),
]
"""Pages that only a form leads to; what was typed comes back on them."""

NOT_FOUND = Place("/no/such/%3Csvg%20onload=window.hit=9%3E", status=404)


@dataclass(frozen=True)
class Download:
    """What an endpoint sends that is no page: its address, its content type ("" where it leads on), whose browser asks, and
    whether it holds texts of people, or figures alone.
    """

    path: str
    kind: str
    who: str = "admin"
    texts: bool = True


OTHERS: dict[str, Download] = {
    "api.models": Download("/v1/models", "application/json"),
    "api.one_model": Download("/v1/models/dunnock", "application/json"),
    "api_docs.openapi": Download("/api/v1/openapi.json", "application/json"),
    "api_invitations.list_invitations": Download("/api/v1/invitations", "application/json"),
    "api_judgments.export": Download("/api/v1/export/preference", "application/jsonl"),
    "api_judgments.export_judgments": Download("/api/v1/judgments/export", "application/jsonl"),
    "api_judgments.list_judgments": Download("/api/v1/judgments", "application/json"),
    "api_judgments.list_of_task": Download("/api/v1/tasks/1/judgments", "application/json"),
    "api_people.list_people": Download("/api/v1/people", "application/json"),
    "api_people.show": Download("/api/v1/people/1", "application/json"),
    "api_rules.list_rules": Download("/api/v1/rules", "application/json"),
    "api_rules.show_diff": Download("/api/v1/rules/{rule}/diff?from=1&to=1", "application/json"),
    "api_rules.show_rule": Download("/api/v1/rules/{rule}", "application/json"),
    "api_tasks.list_tasks": Download("/api/v1/tasks", "application/json"),
    "api_tasks.show": Download("/api/v1/tasks/1", "application/json"),
    "api_tenants.list_keys": Download("/api/v1/tenants/{tenant}/keys", "application/json"),
    "api_tenants.list_tenants": Download("/api/v1/tenants", "application/json"),
    "api_tenants.show": Download("/api/v1/tenants/{tenant}", "application/json"),
    "api_tenants.usage": Download("/api/v1/tenants/{tenant}/usage", "application/json", texts=False),
    "audit.as_csv": Download("/audit.csv", "text/csv"),
    "audit.as_json": Download("/audit.json", "application/json"),
    "console.cycle_json": Download("/cycles/{running}.json", "application/json"),
    "console.show_steps": Download("/cycles/{cycle}/steps/update", "text/html", texts=False),
    "console.static": Download("/console/static/console.css", "text/css"),
    "console.steps_file": Download("/cycles/{cycle}/steps/reward-preference.csv", "text/csv", texts=False),
    "feedback.home": Download("/", ""),
    "feedback.probe_turn": Download("/annotate/{probe_token}/turns/{turn}", "text/html", "probe"),
    "feedback.static": Download("/static/feedback/annotate.js", "text/javascript"),
    "health.healthz": Download("/healthz", "application/json"),
    "health.readyz": Download("/readyz", "application/json"),
    "metrics.metrics": Download("/metrics", "text/plain"),
    "people.static": Download("/static/access/access.css", "text/css"),
    "quality.library": Download("/quality/library/uplot.iife.min.js", "text/javascript"),
    "quality.table": Download("/quality/tables/annotators.csv", "text/csv"),
    "rewards.table": Download("/rewards/{reward}/rewards.csv", "text/csv"),
    "serving.static": Download("/static/serving/chat.js", "text/javascript"),
    "system_prompts.table": Download("/system-prompts/tables/effects.csv", "text/csv", texts=False),
    "static": Download("/static/style.css", "text/css"),
}

PLACES = [place for places in PAGES.values() for place in places]
