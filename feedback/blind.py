"""Names of models and their makers, hidden from who judges: a text that says who wrote it is not judged for what it says.

Some names mean nothing else and are hidden wherever they stand. Others are words, people, animals or companies that one may
well write about: they are hidden where a text speaks of itself with them, as in "I was made by Google".

A hidden name is put back in what is stored, as far as the annotator left its place standing.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

HIDDEN = "[name hidden]"
NAMES = (
    "ChatGPT", "InstructGPT", "GPT", "OpenAI", "Anthropic", "DeepMind", "Google DeepMind", "Google AI", "Google Bard",
    "Google Gemini", "LaMDA", "TinyLlama", "CodeLlama", "Code Llama", "Meta AI", "Meta Llama", "Mixtral", "Mistral AI", "Qwen",
    "Alibaba Cloud", "Tongyi Qianwen", "DeepSeek", "SmolLM", "Hugging Face", "HuggingFace", "Vicuna", "xAI", "Phi-2", "Phi-3",
    "Phi-4", "Open Assistant", "OpenAssistant", "Bing Chat", "Moonshot AI", "Microsoft Copilot", "GitHub Copilot", "AI21 Labs",
    "Stability AI", "StableLM", "EleutherAI", "GPT-NeoX", "Inflection AI", "Perplexity AI", "Character.AI", "Nous Research",
    "NousResearch", "WizardLM", "InternLM", "ChatGLM", "GLM-4", "Zhipu AI", "Baichuan", "ERNIE Bot", "Doubao", "Hunyuan",
    "MiniMax AI", "Nemotron", "Aleph Alpha", "OpenELM", "Allen Institute for AI", "AllenAI", "Technology Innovation Institute",
    "01.AI", "LAION",
)  # fmt: skip
"""Names that mean nothing else, in upper or lower case."""
WORDS = (
    "Gemini",
    "Bard",
    "PaLM",
    "Mistral",
    "Falcon LLM",
    "Copilot",
    "Grok",
    "Cohere",
    "Gemma",
    "Kimi",
    "LLaMA",
    "OLMo",
)
"""Names that are words or people too: hidden with a capital only."""
SIZED = ("Falcon", "Yi", "Granite", "Zephyr", "Dolly", "Pythia", "Bloom", "BLOOM", "Alpaca", "Hermes", "OPT", "MPT")
"""Names of models that are common words: hidden with a size, as in "Falcon-40B", or where a text gives them as its own."""
OWN = (*SIZED, "Llama", "Phi", "Command R", "Nova", "Pi", "Sonnet", "Sydney", "Alexa", "Siri", "Cortana")
"""Names that are hidden only where a text gives them as its own."""
MAKERS = (
    "Google", "Google Research", "Alphabet", "Meta", "Meta Platforms", "Facebook", "Facebook AI", "Microsoft",
    "Microsoft Research", "Apple", "Amazon", "Amazon Web Services", "AWS", "Nvidia", "NVIDIA", "IBM", "Alibaba", "Baidu",
    "Tencent", "ByteDance", "Huawei", "Zhipu", "MiniMax", "Salesforce", "Databricks", "MosaicML", "Snowflake", "AI21",
    "Inflection", "Perplexity", "Adept", "Reka", "Stanford", "Stanford University", "Berkeley", "UC Berkeley", "TII", "Yandex",
    "Sber", "Naver", "Moonshot", "Stability", "Together", "Together AI", "LG AI Research", "Samsung",
)  # fmt: skip
"""Companies and schools that are written about for much else: hidden where a text says that they made it."""
# A name with what follows it as a version: "GPT-4o", "SmolLM2-135M-Instruct".
_VERSION = r"(?:[- ]?v?\d[\w.]*(?:-[\w.]+)*(?<!\.))?"
_EDITION = r"(?: (?:Opus|Sonnet|Haiku|Instant|Turbo|Ultra|Flash|Pro|Nano|Mini)\b)?"
_MADE = (
    r"(?:made|built|created|developed|trained|designed|programmed|provided|powered|released|engineered|maintained|produced"
    r"|operated|owned|fine-?tuned|pre-?trained|brought to you)(?: and \w+)?"
)
_MODEL = r"(?:[Mm]odels?|[Aa]ssistants?|[Cc]hat-?bots?|[Bb]ots?|LLMs?|AIs?|[Aa]rtificial intelligence|[Aa]gent|AI system|[Pp]rogram)"
_ME = r"(?:I am|I['’]m|I was|I have been|I['’]ve been)"
# What stands before a maker's name where a text speaks of itself.
_BEFORE_MAKER = (
    rf"\b{_ME} (?:\w+ ){{0,2}}?{_MADE} (?:by|at) ",
    rf"\b{_ME}\b[^.!?\n]{{0,60}}?\b{_MODEL}\b[^.!?\n]{{0,60}}?\b{_MADE} (?:by|at) ",
    rf"\b{_MODEL},? (?:(?:that|which|who) (?:was|is|were|has been) )?{_MADE} (?:by|at) ",
    rf"\b{_ME}\b[^.!?\n]{{0,60}}?\b{_MODEL} (?:by|from|of) ",
    r"\bI (?:work for|come from|belong to|represent) ",
    r"\b[Mm]y (?:makers?|creators?|developers?|owners?|designers?)(?: (?:is|are|was|were|at)|,)? ",
    r"\b(?:Made|Built|Created|Developed|Trained|Designed) by (?=[^.!?\n]{1,40}, I\b)",
)
# What follows a maker's name there.
_AFTER_MAKER = (
    r" (?:has |have )?(?:made|built|created|trained|developed|designed|programmed) me\b",
    r"['’]s (?:[\w-]+ ){0,3}?(?:language model|AI (?:assistant|model)|chat-?bot|LLM)\b",
)
_BEFORE_OWN = (
    r"\b(?:I am|I['’]m|[Mm]y name is|[Mm]y name['’]s|[Cc]all me|I am called|I['’]m called|I go by|[Tt]his is)(?: the)? ",
    rf"\b{_MODEL},? (?:called|named|known as) ",
)
_AFTER_OWN = rf"(?=,? (?:an?|the|your) (?:[\w-]+ ){{0,4}}?{_MODEL}\b|[.!,]|$|\n| and I\b)"


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


@lru_cache(maxsize=1)
def _patterns() -> dict[tuple[str, ...], list[re.Pattern[str]]]:
    """Each finds a `name`, in its surroundings where these tell what it is; by words of which one must stand in the text.

    Most texts have none of them, and to look for them is far quicker than to look for surroundings.
    """
    maker = rf"(?:{_any((*MAKERS, *NAMES, *WORDS))})(?!\w)"
    makers = rf"(?P<name>{maker}(?:(?:, |,? and |,? & |/){maker}){{0,3}})"
    # A person's second name follows "Claude" with a capital; a model's is one of these.
    claude = r"Claude(?! (?!Instant|Sonnet|Opus|Haiku|Code|AI\b)[A-Z][a-z]+)"
    named = rf"(?<!\w)(?:{_any((*NAMES, *WORDS, 'Claude'))})\b[^.!?\n]{{0,40}}?\b{_MADE} (?:by|at) "
    found = {
        (): [rf"(?<!\w)(?P<name>(?:(?i:{_any(NAMES)})|(?<!-)(?:{_any(WORDS)}|{claude})){_VERSION}{_EDITION})(?!\w)"],
        ("Llama",): [r"(?<!\w)(?P<name>Llama[- ]?v?\d[\w.]*(?:-[\w.]+)*(?<!\.))(?!\w)"],
        SIZED: [rf"(?<!\w)(?P<name>(?:{_any(SIZED)})[- ]\d[\d.]*[BbMm](?:-[\w.]+)*(?<!\.))(?!\w)"],
        (*MAKERS, *NAMES, *WORDS): [
            *(rf"{before}(?:the )?{makers}" for before in (*_BEFORE_MAKER, named)),
            *(rf"(?<!\w){makers}(?={after})" for after in _AFTER_MAKER),
        ],
        OWN: [rf"{before}(?P<name>(?:{_any(OWN)}){_VERSION}){_AFTER_OWN}" for before in _BEFORE_OWN],
    }
    return {names: [re.compile(pattern) for pattern in patterns] for names, patterns in found.items()}


def _places(text: str) -> list[tuple[int, int]]:
    """Where names stand in a text, from first to last; those that overlap are one."""
    places: list[tuple[int, int]] = []
    worth = [
        pattern
        for names, patterns in _patterns().items()
        if not names or any(name in text for name in names)
        for pattern in patterns
    ]
    for start, end in sorted(match.span("name") for pattern in worth for match in pattern.finditer(text)):
        if places and start < places[-1][1]:
            places[-1] = (places[-1][0], max(end, places[-1][1]))
        else:
            places.append((start, end))
    return places


@dataclass(frozen=True)
class Blind:
    """A text with the names in it hidden, and the names."""

    text: str
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> "Blind":
        """Hide the names in a text."""
        shown, names, at = [], [], 0
        for start, end in _places(text):
            shown += [text[at:start], HIDDEN]
            names.append(text[start:end])
            at = end
        return cls("".join([*shown, text[at:]]), tuple(names))

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
        """Another text of this item, e.g. a stored quote, as it is shown: a part of it as it is shown there."""
        whole = self.restore(self.text)
        for start in (match.start() for match in re.finditer(re.escape(text), whole) if text):
            if (shown := self._shown(start, start + len(text))) is not None:
                return shown
        return Blind.of(text).text

    def _shown(self, start: int, end: int) -> str | None:
        """What is shown of a part of the text with its names; None where the part cuts a name."""
        shown, at = [], 0  # `at`: place in the text with names
        for n, words in enumerate(self.text.split(HIDDEN)):
            if n:
                name = self.names[n - 1] if n <= len(self.names) else HIDDEN
                if at < end and start < at + len(name):
                    if start > at or end < at + len(name):
                        return None
                    shown.append(HIDDEN)
                at += len(name)
            shown.append(words[max(0, start - at) : max(0, end - at)])
            at += len(words)
        return "".join(shown)
