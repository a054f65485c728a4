"""What the forms of system prompts and of the guard's thresholds have in common: who changes something and why, and whole numbers."""

from pydantic import ValidationError

from access.views import current_person
from core.errors import InvalidInput
from core.language import gettext as _
from feedback.rules.words import MAX_NOTE, Change


def change_by(note: str) -> Change:
    """The person who asks, and what they say of their change.

    Raises:
        InvalidInput: the note is too long.
    """
    person = current_person()
    try:
        return Change(author_id=person.id, login=person.login, note=note)
    except ValidationError as error:
        raise InvalidInput(_("At most %(most)s characters fit.", most=MAX_NOTE), param="note") from error


def whole_number(value: str, param: str) -> int:
    """A number of up to nine digits, as it was typed.

    Raises:
        InvalidInput: it is none.
    """
    value = value.strip()
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise InvalidInput(_("%(value)r is no whole number", value=value[:40]), param=param)
    return int(value)
