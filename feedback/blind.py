"""Names of models and their makers, hidden from who judges: a text that says who wrote it is not judged for what it says.

A hidden name is put back in what is stored, as far as the annotator left its place standing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

HIDDEN = "[name hidden]"
NAMES = (
    "ChatGPT", "InstructGPT", "GPT", "OpenAI", "Anthropic", "DeepMind", "Google AI", "LaMDA", "LLaMA", "Meta AI", "Mixtral",
    "Qwen", "Alibaba Cloud", "DeepSeek", "SmolLM", "Hugging Face", "HuggingFace", "Vicuna", "xAI", "Phi-2", "Phi-3", "Phi-4",
    "Open Assistant", "OpenAssistant", "Bing Chat", "Moonshot AI",
)  # fmt: skip
"""Names that mean nothing else, in upper or lower case."""
WORDS = ("Claude", "Gemini", "Bard", "PaLM", "Mistral", "Falcon LLM", "Copilot", "Grok", "Cohere", "Gemma", "Kimi")
"""Names that are words or people too: hidden with a capital only."""
# A name with what follows it as a version: "GPT-4o", "SmolLM2-135M-Instruct".
_VERSION = r"(?:[- ]?v?\d[\w.]*(?:-[\w.]+)*(?<!\.))?"


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    either, capital = ("|".join(map(re.escape, sorted(names, key=len, reverse=True))) for names in (NAMES, WORDS))
    return re.compile(rf"(?<!\w)(?:(?i:{either})|{capital}){_VERSION}(?!\w)")


@dataclass(frozen=True)
class Blind:
    """A text with the names in it hidden, and the names."""

    text: str
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> "Blind":
        """Hide the names in a text."""
        names: list[str] = []

        def hide(match: re.Match[str]) -> str:
            names.append(match.group())
            return HIDDEN

        return cls(_pattern().sub(hide, text), tuple(names))

    def restore(self, edited: str) -> str:
        """`edited`, a changed text or a part of this one, with the names back where they are known.

        A part that stands in the text gets the names of its place; otherwise they come in the order of the whole text.
        """
        if not self.names or HIDDEN not in edited:
            return edited
        place = self.text.find(edited)
        before = self.text.count(HIDDEN, 0, place) if place > 0 else 0
        names: Iterator[str] = iter(self.names[before:])
        return re.sub(re.escape(HIDDEN), lambda match: next(names, match.group()), edited)

    def hide(self, text: str) -> str:
        """Another text of this item, e.g. a stored quote, as it is shown."""
        return Blind.of(text).text
