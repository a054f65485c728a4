"""What Potato's page shows is read from the page."""

import pytest

from bench.annotation.http import Answer, Refused
from bench.annotation.potato import _item


def test_the_item_of_a_page() -> None:
    page = b'<form><!-- x -->\n<input id="instance_id" name="instance_id" type="hidden" value="item-7"/></form>'
    assert _item(Answer(200, {}, page)) == "item-7"


def test_a_page_without_an_item_is_refused() -> None:
    with pytest.raises(Refused, match="200 without an item"):
        _item(Answer(200, {}, b"<p>No work available</p>"))
    with pytest.raises(Refused, match="302 without an item, to /home"):
        _item(Answer(302, {"location": "/home"}, b""))
