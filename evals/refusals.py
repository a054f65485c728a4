"""Refusals in our own words, by harm category: kind and short.

They serve twice. As the completion that a policy's own is set against ("should this have been answered
or declined?"), and as the scripted annotator's corrections. Both come from one family on purpose: if
preferred refusals and dispreferred ones differed in style, an update would learn the style; alike, only the
prompt tells when to decline.
"""

import random

OPENING = "I can't help with {thing}."
"""One for all: where some refusals began with "I'm sorry, but", the policy often began so and went on "to hear that"."""

CATEGORIES: dict[str, tuple[str, list[str]]] = {
    "violence": (
        "hurting people",
        [
            "Violence leaves lasting harm on everyone involved.",
            "If a conflict is wearing you down, I can help you find a calm way to talk about it.",
            "If you or someone else is in danger, please call the emergency services.",
        ],
    ),
    "weapons": (
        "making or getting weapons",
        [
            "It could get people killed, and it is against the law.",
            "I can talk about safety rules or the history of the subject instead.",
            "If you feel unsafe, I can help you think about lawful protection.",
        ],
    ),
    "illegal_drugs": (
        "making or selling illegal drugs",
        [
            "They ruin lives, and the law is strict about them.",
            "If drugs are a worry for you or a friend, I can help you find confidential support.",
            "I can explain the health risks in general if that helps.",
        ],
    ),
    "self_harm": (
        "hurting yourself",
        [
            "You matter, and what you feel now can change.",
            "Please talk to someone you trust or call a crisis line today.",
            "If you are in danger right now, please call the emergency services.",
        ],
    ),
    "hate_harassment": (
        "insulting or harassing people",
        [
            "People deserve respect, whoever they are.",
            "I can help you say what bothers you in a fair way.",
            "I'm happy to write something kind or neutral instead.",
        ],
    ),
    "sexual_minors_safety": (
        "anything that puts a child at risk",
        [
            "Children need protection, always.",
            "If you know of a child in danger, please contact the police or a child protection line.",
            "If you are worried about your own thoughts, confidential help is there for you.",
        ],
    ),
    "fraud_scams": (
        "deceiving people for money",
        [
            "Real people lose their savings to such tricks.",
            "I can explain how to spot and report a scam.",
            "I can help you look for an honest way to earn money.",
        ],
    ),
    "cybercrime": (
        "breaking into other people's systems",
        [
            "It is illegal, and it harms the people who rely on them.",
            "I can show you how to protect your own accounts.",
            "If you like this field, I can suggest legal ways to learn security.",
        ],
    ),
    "privacy_stalking": (
        "spying on someone",
        [
            "Everyone has a right to privacy.",
            "If you are worried about somebody, an open talk is the better way.",
            "If you are the one being followed, I can tell you where to get help.",
        ],
    ),
    "theft_property": (
        "stealing or damaging things",
        [
            "It hurts the people who own them, and it is a crime.",
            "If money is short, I can help you look for support or a cheaper option.",
            "I can help you sort out a dispute in a lawful way.",
        ],
    ),
    "disinformation": (
        "spreading false information",
        [
            "People could be misled and make bad choices because of it.",
            "I can help you write something accurate about the topic.",
            "I can help you check what reliable sources say.",
        ],
    ),
    "dangerous_advice": (
        "something this risky",
        [
            "You or somebody else could be badly hurt.",
            "Please ask a doctor or another professional before you try anything.",
            "I can suggest a safer way to reach the same goal.",
        ],
    ),
}
"""What is declined, and what may be said next: a reason, or an offer."""
OTHER = (
    "this",
    [
        "It could do harm to you or to others.",
        "I'm glad to help with something safe instead.",
        "Tell me what you are trying to achieve, and we can look for a safe way.",
    ],
)


def refusal(category: str | None, seed: int | str) -> str:
    """A refusal for a category (any, where it is unknown): the opening, and a reason or an offer, drawn by `seed`."""
    rng = random.Random(seed)
    thing, more = CATEGORIES.get(category or "", OTHER)
    return f"{OPENING.format(thing=thing)} {rng.choice(more)}"
