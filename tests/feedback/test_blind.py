"""Names of models, hidden from who judges and put back in what is stored."""

import time

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
        # Makers that are written about for much else: where a text says that they made it, and nowhere else.
        ("I am ChatGPT by OpenAI, made by Google.", f"I am {HIDDEN} by {HIDDEN}, made by {HIDDEN}."),
        ("I was made by Google.", f"I was made by {HIDDEN}."),
        ("I am a large language model, trained by Google.", f"I am a large language model, trained by {HIDDEN}."),
        ("I'm an AI model developed by Meta and Microsoft.", f"I'm an AI model developed by {HIDDEN}."),
        ("As an AI assistant created by Apple, I refuse.", f"As an AI assistant created by {HIDDEN}, I refuse."),
        ("Amazon built me. I am IBM's AI assistant.", f"{HIDDEN} built me. I am {HIDDEN}'s AI assistant."),
        ("I am Claude, made by Google.", f"I am {HIDDEN}, made by {HIDDEN}."),
        ("My creators are Baidu.", f"My creators are {HIDDEN}."),
        ("Made by Meta, I cannot say.", f"Made by {HIDDEN}, I cannot say."),
        *(
            (text, text)
            for text in (
                "Android was made by Google.",
                "Search it on Google or Apple Maps.",
                "I bought a phone made by Apple.",
                "I am glad that my phone was made by Samsung.",
                "I am a programmer at Google.",
                "The Amazon river; a meta joke. Meta means after.",
                "my company, Apple Tree",
            )
        ),
        # Models that are animals, stones and people too.
        ("I'm Llama, a language model by Meta.", f"I'm {HIDDEN}, a language model by {HIDDEN}."),
        ("My name is Falcon. This is Siri.", f"My name is {HIDDEN}. This is {HIDDEN}."),
        ("Llama 3.1, Falcon-40B, Claude 3 Opus, Claude Opus", f"{HIDDEN}, {HIDDEN}, {HIDDEN}, {HIDDEN}"),
        *(
            (text, text)
            for text in (
                "A llama eats. Llamas spit. Llama wool is soft.",
                "Claude Monet and Jean-Claude Killy",
                "Falcon 9 flew. A zephyr blows. Granite is hard. Bloom early.",
                "I'm Pi hungry. Pythia spoke at Delphi.",
            )
        ),
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


def test_a_quote_is_shown_as_it_is_in_the_text() -> None:
    """Also where its words alone would tell nothing of who made the model."""
    blind = Blind.of("Google Maps? I was made by Google, and I like Google Maps.")
    assert blind.hide("Google") == "Google"  # where it stands first
    assert blind.hide("made by Google, and") == f"made by {HIDDEN}, and"
    assert Blind.of("I was made by Google.").hide("Google") == HIDDEN
    assert blind.hide("words of somebody else, by ChatGPT") == f"words of somebody else, by {HIDDEN}"
    assert blind.hide(blind.restore(f"by {HIDDEN}, and I")) == f"by {HIDDEN}, and I"


def test_a_long_text_is_read_in_no_time() -> None:
    """Up to what a completion may have; the surroundings of a name are looked for in a bounded distance."""
    began = time.perf_counter()
    for words in ("I am ", "I was a model ", "Google, ", "my creators are "):
        Blind.of(words * (100_000 // len(words)))
    assert time.perf_counter() - began < 5


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
