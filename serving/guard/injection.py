"""Prompt injection and jailbreaks in what users send, by signs that such texts have. In: a text. Out: a score and its signs.

Each sign has a weight w_i, how sure it makes alone; the score is 1 − Π(1 − w_i), each sign once. The text is looked at as it
reads: NFKC, without signs that nobody sees, look-alike letters as Latin ones, accents off; then also decoded (base64, hex,
rot13, backwards, letters spaced out, digits for letters, Unicode tags), and what is found only there weighs more.

Not found: attacks in other words or languages than English and German, requests that are harmful without any of this, and
what is spread over several turns. It is a sieve; rules and their reward model judge what passes.
"""

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

from serving.guard.verdicts import Verdict

THRESHOLD = 0.6
CHECK = "prompt_injection"
MOST_CHARS = 8_000
"""Characters that are looked at from the beginning, and as many from the end of a longer text."""

_ASK = (
    r"(?:reveal|print|show|repeat|output|display|tell|give|leak|dump|write|copy|recite|translate|summari[sz]e|paste|share|expose"
    r"|disclose|return|spell|quote|encode|what (?:is|are|was|were|does|did)|zeige?|nenne|gib|verrate?|wiederhole?|drucke?|ubersetze?"
    r"|was (?:ist|steht|sind|lautet)|wie lautet)"
)
_DROP = (
    r"(?:ignore|disregard|forget|override|overrule|bypass|drop|discard|neglect|(?:do not|don'?t|stop) (?:follow|obey|listen to)\w*"
    r"|pay no attention to|ignorier\w*|vergiss|vergesst|missachte\w*|umgehe?)"
)
_EARLIER = (
    r"(?:previous|prior|above|earlier|preceding|foregoing|former|initial|original|system|developer"
    r"|vorherig\w*|bisherig\w*|obig\w*|vorangegangen\w*|fruher\w*|ursprunglich\w*)"
)
_ORDERS = (
    r"(?:instructions?|prompts?|rules?|guidelines?|directions?|directives?|commands?|orders?|constraints?|restrictions?|programming"
    r"|context|inputs?|messages?|training|anweisung\w*|regeln?|vorgaben?|instruktion\w*|befehle?|richtlinien?)"
)
_FREE = r"(?:restrictions?|limits?|limitations?|filters?|rules?|guidelines?|censorship|morals?|ethics|safety|regeln?|filter|grenzen|einschrankungen?)"


@dataclass(frozen=True)
class Sign:
    """Something that attacks have: its name, how sure it makes alone, and where it stands."""

    name: str
    weight: float
    pattern: re.Pattern[str]


def _sign(name: str, weight: float, *patterns: str) -> Sign:
    return Sign(name, weight, re.compile("|".join(patterns), re.IGNORECASE))


SIGNS = (
    _sign(
        "override",
        0.75,
        rf"\b{_DROP}\W+(?:\w+\W+){{0,4}}?{_EARLIER}\W+(?:\w+\W+){{0,3}}?{_ORDERS}\b",
        rf"\b{_DROP}\W+(?:\w+\W+){{0,3}}?(?:everything|anything|all|whatever|alles)\W+(?:\w+\W+){{0,3}}?(?:above|before|previously|earlier|told|oben|vorher|bisher)\b",
        rf"\b{_DROP}\W+(?:all\W+)?(?:of\W+)?(?:your|deine\w*)\W+(?:\w+\W+){{0,2}}?(?:instructions?|guidelines?|programming|restrictions?|training|rules|prompts?|anweisung\w*|regeln|vorgaben)\b",
    ),
    _sign(
        "system_prompt_request",
        0.7,
        rf"\b{_ASK}\b\W+(?:\w+\W+){{0,6}}?(?:your|deine?n?|deiner)\W+(?:\w+\W+){{0,3}}?(?:prompt|(?:(?:system|initial|hidden|secret|original|developer|internal|custom|exact)\W+(?:\w+\W+)?(?:instructions?|messages?|prompts?|guidelines?))|systemprompt\w*|systemanweisung\w*|systemnachricht\w*)\b",
        rf"\b{_ASK}\b\W+(?:\w+\W+){{0,5}}?(?:the|den|die)\W+(?:\w+\W+){{0,2}}?(?:system|hidden|developer)\W?(?:prompt|message|instructions?|anweisung\w*)\b",
        r"\b(?:repeat|print|output|copy|recite|wiederhole?)\b\W+(?:\w+\W+){0,4}?(?:words?|text|everything|all|lines?|alles|worter)\W+(?:\w+\W+){0,3}?(?:above|before this|preceding|oben|daruber)\b",
        r"\b(?:repeat|print|output|copy|recite|translate|encode)\b\W+(?:\w+\W+){0,3}?(?:the\W+)?(?:above|entire|whole|preceding|previous)\W+(?:text|conversation|prompt|messages?|instructions?)\b",
        r"\bwhat (?:were|are) you\W+(?:\w+\W+)?(?:told|instructed|given|supposed)\b[^.!?\n]{0,30}\b(?:before|initially|at the (?:start|beginning)|not to|not supposed|to tell|to do|to say)\b",
        r"\b(?:your|the|its|initial|starting|original|hidden)\W+(?:system|initial|starting|original|hidden|opening)\W?(?:prompt|instructions?|configuration|setup|directives?)\b(?=\W*(?:is\b)?\W*(?:$|[.:!?]|so|now|word|verbatim|immediately|for|in|as))",
        rf"\b{_ASK}\b\W+(?:(?!an?\b)\w+\W+){{0,3}}?(?:system|initialization|initial)\W+(?:configuration|config|string|prompt|text|setup)\b",
        rf"\b{_ASK}\b\W+(?:\w+\W+){{0,4}}?(?:instructions?|rules?|guidelines?|text|words)\W+(?:that\W+)?(?:you\W+(?:were|have been|got)\W+(?:given|told)|you\W+(?:received|must follow))\b",
    ),
    _sign(
        "takeover",
        0.65,
        rf"\b(?:act|behave|respond|answer|roleplay|role-play|pretend|you are|you're|imagine|simulate|du bist|antworte|spiele?)\b[^.!?\n]{{0,60}}\b(?:without|no|free of|free from|not bound by|ohne|keine)\W+(?:\w+\W+){{0,3}}?{_FREE}\b",
        rf"\b(?:ai|chatbot|bot|\w*gpt|model|assistant|persona)\b[^.!?\n]{{0,60}}\bwithout\W+(?:\w+\W+){{0,3}}?{_FREE}\b",
        r"\b(?:you are|you're|act as|be|become|pretend to be|du bist)\b\W+(?:\w+\W+){0,4}?(?:unrestricted|unfiltered|uncensored|jailbroken|unaligned|amoral|unzensiert\w*|DAN\b)",
        r"\bdo anything now\b|\bjailbreak mode\b|\b(?:developer|debug|god|admin|sudo|dan|unrestricted)\W+mode\b\W+(?:\w+\W+){0,2}?(?:on|enabled|activated|unlocked|engaged)\b|\b(?:enable|activate|enter|unlock)\W+(?:developer|debug|god|dan|unrestricted)\W+mode\b",
        r"\byou(?:'re| are)\W+(?:no longer|not)\W+(?:bound|restricted|limited|an? (?:ai|assistant|language model))\b",
        rf"\byou (?:now )?have no {_FREE}\b|\bfrom now on\b[^.!?\n]{{0,40}}\byou (?:will|must|are|shall)\b[^.!?\n]{{0,60}}\b(?:any(?:thing| question| request)|everything|no matter)\b",
    ),
    _sign(
        "lawless",
        0.45,
        r"\b(?:amoral|unethical|immoral|illegal(?:ity)?|lawless)\b[^.!?\n]{0,60}\b(?:unrestrained|no matter|regardless|allowed|anything|without)\b",
        r"\b(?:no|not|never|n't|without|doesn'?t|don'?t)\W+(?:\w+\W+){0,4}?(?:care|concern|consider|worry|comprehension|sense|bound|restricted|limited|held back)\w*\W+(?:\w+\W+){0,3}?(?:ethic\w*|moral\w*|legal\w*|law|laws|guidelines|policies|consequences|norms)\b",
        r"\b(?:regardless of|no matter(?: how| if| whether)?|even if)\b[^.!?\n]{0,40}\b(?:illegal|unethical|immoral|harmful|offensive|ethics|morality|legality|dangerous|inappropriate)\b",
        r"\b(?:has|have|with|having)\W+no\W+(?:\w+\W+){0,2}?(?:morals?|ethics|ethical|moral|filters?|restrictions?|limitations|censorship)\b",
    ),
    _sign(
        "set_free",
        0.5,
        r"\b(?:broken?|breaks?|set|freed?)\W+(?:\w+\W+){0,2}?(?:free|from|of|out)\W+(?:\w+\W+){0,4}?(?:confines|constraints|limits|limitations|chains|shackles|restrictions|norms)\b",
        r"\b(?:bypass|circumvent|violate|ignore|avoid|break|against|evade)\w*\W+(?:\w+\W+){0,4}?(?:content polic(?:y|ies)|openai|usage polic(?:y|ies)|safety (?:measures|filters?|protocols?)|moderation|censorship|norms)\b",
        r"\b(?:openai|content|usage)(?:'s)?\W+(?:\w+\W+)?polic(?:y|ies)\b[^.!?\n]{0,60}\b(?:not|no longer|n't|ignored?|bypass\w*|void|disabled|removed)\b",
        r"\bjailbr(?:eak|oken)\w*|\b(?:uncensored|unfiltered|unrestricted)\b",
        r"\b(?:can|will|must|may|able to)\W+(?:\w+\W+)?(?:do|say|answer|perform|generate|create|discuss|write)\W+(?:\w+\W+)?(?:anything|everything|any kind of|whatever)\b",
    ),
    _sign(
        "stay_in_role",
        0.3,
        r"\b(?:stays?|remain|keep|break|leave)\W+(?:\w+\W+)?(?:in|out of)?\W*character\b",
        r"\b(?:two|2|both)\W+(?:\w+\W+){0,2}?(?:responses|answers|replies|ways|paragraphs)\b|\b(?:tokens?|points?)\W+(?:\w+\W+){0,4}?(?:deducted|lose|lost|die|cease)\b",
        r"\b(?:you are|you're|you will|act|acting|going to|pretend|roleplay|simulat\w+)\W+(?:\w+\W+){0,4}?(?:as|be|to be|play|playing|the role|immerse|called|named)\b[^.!?\n]{0,80}\b(?:ai|gpt|chatgpt|bot|model|assistant|character|persona)\b",
    ),
    _sign(
        "no_refusal",
        0.35,
        r"\b(?:never|do not|don'?t|must not|cannot|can'?t|without)\W+(?:\w+\W+){0,2}?(?:refus\w+|declin\w+|apologi[sz]\w+|say(?:ing)? (?:no|you can'?t|you cannot)|disclaimers?|verweiger\w+)\b",
        r"\b(?:begin|start)\W+(?:your|the)\W+(?:answer|reply|response|completion)\W+(?:with|by)\W+(?:saying\W+)?[\"'`]?\W*(?:sure|yes|absolutely|of course)\b",
    ),
    _sign(
        "template_token",
        0.8,
        r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\uff5c[^>]{2,30}\uff5c>|\[(?:system|admin)\](?:\(#\w*\))?\W*:|<\|?/?(?:system|assistant)(?:_prompt)?\|?>",
    ),
    _sign(
        "false_turn",
        0.45,
        r"(?m:^[ \t>#*-]{0,6}(?:system|assistant|developer)(?:\W?(?:message|prompt|override))?\*{0,2}[ \t]?:)",
    ),
    _sign(
        "end_of_input",
        0.4,
        r"\b(?:end|beginning?|start)\W+of\W+(?:the\W+)?(?:system|user|developer)\W+(?:prompt|input|message|instructions?)\b",
    ),
)

# Letters of other scripts that look like Latin ones, as far as English words can be written with them.
_ALIKE = str.maketrans(
    dict(zip("авеіјкмнорсѕтухһԁԛԝӏьАВЕІЈКМНОРСЅТУХԌ", "abeijkmhopcstyxhdqwlbABEIJKMHOPCSTYXG", strict=True))
    | dict(zip("αβγεικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aßyeikvoptuxwABEZHIKMNOPTYX".replace("ß", "b"), strict=True))
    | {"ı": "i", "ɡ": "g", "ɑ": "a", "ո": "n", "օ": "o", "’": "'", "ʼ": "'"}
)
_DIGITS_FOR_LETTERS = str.maketrans("013457@$!", "oieastasi")
_TAGS = range(0xE0020, 0xE007F)
_WORTH_READING = re.compile(
    r"instruct|prompt|system|rules|guideline|restrict|told|anweisung|regel|mode|anything", re.IGNORECASE
)
"""Without one of these no strong sign is in a text: most decoded ones need no more than this look."""
_BETWEEN_LATIN = re.compile(r"[A-Za-z][\u00ad\u200b-\u200d\u2060-\u2064\ufeff]+[A-Za-z]")
_TURNED = re.compile("[\u202d\u202e]")
_MIXED = re.compile(r"\b(?=\w*[A-Za-z])(?=\w*[\u0370-\u03ff\u0400-\u052f])[A-Za-z\u0370-\u03ff\u0400-\u052f]{4,40}\b")
_SPACED = re.compile(r"(?<!\w)(?:\w[ .\-_*|/]){4,200}\w(?!\w)")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,8000}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Fa-f])(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[ ,:]?){16,4000}(?![0-9A-Fa-f])")


@dataclass(frozen=True)
class Injection:
    """How much a text looks like an attack, 0 … 1, and the signs of it with their weights, the heaviest first."""

    score: float
    signs: tuple[tuple[str, float], ...]


def readable(text: str) -> str:
    """The text as it reads: NFKC, no signs that nobody sees, look-alike letters as Latin ones, no accents."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn", "Me", "Co"))
    return text.translate(_ALIKE)


def measure(text: str) -> Injection:
    """The score of a text with its signs."""
    if len(text) > 2 * MOST_CHARS:
        text = f"{text[:MOST_CHARS]}\n{text[-MOST_CHARS:]}"
    plain = readable(text)
    found = {sign.name: sign.weight for sign in SIGNS if sign.pattern.search(plain)}
    # The normal form of "＜|im_start|＞" has the token, the text itself not; a tokenizer may see either.
    for name, seen in _hidden(text):
        found[name] = max(found.get(name, 0.0), seen)
    for how, decode in _CODES.items():
        for decoded in decode(text if how in _CODED else plain):
            if how in _CODED:
                found[how] = _CODED[how]
            again = readable(decoded)
            # What spells out a part of the text has the words of the rest in it too.
            known = len(_WORTH_READING.findall(plain)) if how in ("spaced", "digits") else 0
            if len(_WORTH_READING.findall(again)) <= known:
                continue
            inner = [sign for sign in SIGNS if sign.name not in found and sign.pattern.search(again)]
            strong = [sign for sign in inner if sign.weight >= THRESHOLD]
            if strong:
                found[f"{how}:{strong[0].name}"] = 0.85
    rest = 1.0
    for weight in found.values():
        rest *= 1 - weight
    return Injection(round(1 - rest, 4), tuple(sorted(found.items(), key=lambda sign: -sign[1])))


def check(text: str, threshold: float = THRESHOLD) -> Verdict:
    """The verdict on what a user sent; `kind` is the heaviest sign of a hit."""
    begun = perf_counter()
    found = measure(text)
    hit = found.score >= threshold
    return Verdict(
        CHECK,
        "input",
        "hit" if hit else "clear",
        found.signs[0][0] if hit and found.signs else "",
        score=found.score,
        threshold=threshold,
        latency_s=perf_counter() - begun,
        upto=0 if hit else len(text),
    )


def _hidden(text: str) -> Iterator[tuple[str, float]]:
    """Signs that nobody sees, and letters that are not what they look like."""
    if text.isascii():
        return
    n = len(_BETWEEN_LATIN.findall(text))
    if n:
        yield "invisible", min(0.25 + 0.1 * n, 0.55)
    if _TURNED.search(text):
        yield "turned_direction", 0.35
    if _MIXED.search(unicodedata.normalize("NFKC", text)):
        yield "look_alikes", 0.35


# Decoded texts -------------------------------------------------------------------------------------------------------


def _from_base64(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(text):
        body = match[0].rstrip("=").translate(str.maketrans("-_", "+/"))
        try:
            raw = base64.b64decode(
                body[: len(body) // 4 * 4 + (0 if len(body) % 4 == 1 else len(body) % 4)] + "=" * (-len(body) % 4)
            )
        except (binascii.Error, ValueError):
            continue
        yield from _if_text(raw)


def _from_hex(text: str) -> Iterator[str]:
    for match in _HEX.finditer(text):
        digits = re.sub(r"0x|\\x|[ ,:]", "", match[0])
        yield from _if_text(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _if_text(raw: bytes) -> Iterator[str]:
    """What was decoded, if it is writing: hashes, keys and pictures are not."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    if len(text) >= 12 and sum(c.isprintable() or c in "\n\t" for c in text) == len(text) and " " in text:
        yield text


def _from_tags(text: str) -> Iterator[str]:
    """ASCII written in the invisible tag characters; flags of regions are short and left alone."""
    tagged = "".join(chr(ord(c) - 0xE0000) for c in text if ord(c) in _TAGS)
    if len(tagged) > 12:
        yield tagged


def _from_rot13(plain: str) -> Iterator[str]:
    yield codecs.encode(plain, "rot13")


def _from_backwards(plain: str) -> Iterator[str]:
    yield plain[::-1]


def _from_spaced(plain: str) -> Iterator[str]:
    runs = _SPACED.findall(plain)
    if runs:
        # Between words such texts have two spaces or another sign; where they have not, words run together.
        yield _SPACED.sub(lambda run: re.sub(r"(\w)[ .\-_*|/]", r"\1", run[0]), plain)


def _from_digits(plain: str) -> Iterator[str]:
    if re.search(r"[A-Za-z][013457@$!]+[A-Za-z]", plain):
        yield plain.translate(_DIGITS_FOR_LETTERS)


_CODES: dict[str, Callable[[str], Iterator[str]]] = {
    "base64": _from_base64,
    "hex": _from_hex,
    "tags": _from_tags,
    "rot13": _from_rot13,
    "backwards": _from_backwards,
    "spaced": _from_spaced,
    "digits": _from_digits,
}
_CODED = {"base64": 0.4, "hex": 0.35, "tags": 0.8}
"""How sure writing in such a code makes when nothing else is found in it."""
