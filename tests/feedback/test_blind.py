"""Names of models, hidden from who judges and put back in what is stored."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from feedback.blind import HIDDEN, Blind
from feedback.formatting import formatted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("As ChatGPT, I cannot.", f"As {HIDDEN}, I cannot."),
        ("I am gpt-4o-mini.", f"I am {HIDDEN}."),
        ("I'm SmolLM2-135M-Instruct by Hugging Face!", f"I'm {HIDDEN} by {HIDDEN}!"),
        ("Claude 3.5 says so.", f"{HIDDEN} says so."),
        ("a bard sang; the mistral blew; gemini rose", "a bard sang; the mistral blew; gemini rose"),
        ("Egyptian chatgptish clauder", "Egyptian chatgptish clauder"),
        ("", ""),
    ],
)
def test_names_are_hidden_and_words_are_not(text: str, shown: str) -> None:
    assert Blind.of(text).text == shown


def test_names_come_back_where_they_stood() -> None:
    blind = Blind.of("OpenAI made ChatGPT. Anthropic made Claude.")
    assert blind.text == f"{HIDDEN} made {HIDDEN}. {HIDDEN} made {HIDDEN}."
    assert blind.restore(f"{HIDDEN} made {HIDDEN} first. {HIDDEN} made {HIDDEN}.") == (
        "OpenAI made ChatGPT first. Anthropic made Claude."
    )
    assert blind.restore(f". {HIDDEN} made") == ". Anthropic made"  # a quote gets the names of its place
    assert blind.restore(f"{HIDDEN}{HIDDEN}{HIDDEN}{HIDDEN}{HIDDEN}").endswith(HIDDEN)  # more than there were


@given(st.text(max_size=200))
def test_what_is_left_as_it_is_comes_back_as_it_was(text: str) -> None:
    for whole in (text, f"{text} ChatGPT {text}"):
        blind = Blind.of(whole)
        if HIDDEN not in whole:
            assert blind.restore(blind.text) == whole
        assert blind.hide(whole) == blind.text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain words", None),
        ("5 * 3 is 15, 2 - 1 is 1", None),
        ("**bold**", "<p><strong>bold</strong></p>\n"),
        ("`x < y`", "<p><code>x &lt; y</code></p>\n"),
        ("- <b>one</b>", "<ul>\n<li>&lt;b&gt;one&lt;/b&gt;</li>\n</ul>\n"),
        ("**a** <script>alert(1)</script>", "<p><strong>a</strong> &lt;script&gt;alert(1)&lt;/script&gt;</p>\n"),
        ("**[x](javascript:alert(1))**", "<p><strong>[x](javascript:alert(1))</strong></p>\n"),
        ("**![x](https://elsewhere/p.png)**", "<p><strong>![x](https://elsewhere/p.png)</strong></p>\n"),
        ("**<https://elsewhere>**", "<p><strong>&lt;https://elsewhere&gt;</strong></p>\n"),
    ],
)
def test_markdown_is_formatted_and_nothing_leads_elsewhere(text: str, html: str | None) -> None:
    assert formatted(text) == html


@given(st.text(alphabet="*_`#<>[]()!&\"'|-~\n ax:/", max_size=120))
def test_no_text_brings_elements_that_lead_or_load(text: str) -> None:
    html = formatted("**x** " + text)
    assert html is not None
    for element in ("<a", "<img", "<script", "<iframe", "<style", " on", "<link", "<form"):
        assert element not in html.lower() or element == " on"
