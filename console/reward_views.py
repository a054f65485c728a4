"""The page of a reward model, and its tables as CSV and JSON. Reviewers, leads and admins read; nobody changes anything."""

from flask import Blueprint, Response, render_template

from access.views import require_role
from console import figures, quality_reader, rewards, words
from console.figures import file_of
from core.errors import NotFound
from core.language import gettext as _
from core.web import runtime

READERS = ("reviewer", "lead")  # an admin may do whatever a role may

blueprint = Blueprint("rewards", __name__, template_folder="pages")


@blueprint.context_processor
def _for_templates() -> dict[str, object]:
    return {"words": words, "figures": figures, "quality": quality_reader}


@blueprint.get("/rewards/<int:reward_id>")
@require_role(*READERS)
def show(reward_id: int) -> str:
    with runtime().db.read() as session:
        model = rewards.find_reward(session, reward_id)
        return render_template(
            "console/reward.html", model=model, tables=rewards.tables(model), headline=rewards.headline(model)
        )


@blueprint.get("/rewards/<int:reward_id>/<name>.<any(csv, json):form>")
@require_role(*READERS)
def table(reward_id: int, name: str, form: str) -> Response:
    with runtime().db.read() as session:
        found = rewards.tables(rewards.find_reward(session, reward_id))
    if name not in found:
        choices = ", ".join(sorted(found))
        raise NotFound(_("there is no table %(name)r; there are %(choices)s", name=name, choices=choices))
    return file_of(found[name], form, f"dunnock-reward-{reward_id}-{name}")
