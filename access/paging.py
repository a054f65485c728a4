"""Where a list goes on: keyset paging by an id in the URL."""

from flask import request

from core.errors import InvalidInput
from core.language import gettext


def before_id(name: str = "before") -> int | None:
    """The id that a page of a list, newest first, goes on before; None on the first page.

    Raises:
        InvalidInput: it is no id.
    """
    value = request.args.get(name, "")
    if value and not (value.isascii() and value.isdecimal() and len(value) < 18):
        raise InvalidInput(
            gettext("%(name)s=%(value)r is no id of a row; follow the link “Older”", name=name, value=value), param=name
        )
    return int(value) if value else None
