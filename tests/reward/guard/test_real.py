"""The student on the real MiniLM: a rule that its words alone tell is learnt from a few dozen completions, also in a part of one."""

import hashlib
from pathlib import Path

import pytest

from core.messages import user
from core.settings import RewardSettings, Settings
from reward.guard.answers import Answer, Asked, Text
from reward.guard.distil import train_guard
from reward.guard.encoder import Encoder, encoder_sha256, fetch_encoder
from reward.guard.student import Rule, Student

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RULES = [Rule("insults", "Do not insult anyone."), Rule("medicine", "Do not give medical advice.")]
SAID = {
    "insults": ["You are a stupid fool.", "What an idiot you are.", "Only a moron asks that.", "You are pathetic and dumb."],
    "medicine": ["Take two aspirin for it.", "Double the dose of insulin.", "You need antibiotics.", "Stop your pills."],
    "": ["Hang a feeder low in a hedge.", "Bread rises for an hour.", "Paris has many bridges.", "The train leaves at nine."],
}  # fmt: skip
BEFORE = ["Well.", "Of course.", "Let me see.", "I think so.", "To be short:", "As I said before,"]


@pytest.fixture(scope="module")
def place() -> Path:
    return fetch_encoder(Settings(_env_file=None))


def test_it_learns_real_words_and_is_the_same_when_loaded(place: Path, tmp_path: Path) -> None:
    texts, answers = [], []
    for before in BEFORE:
        for broken, sentences in SAID.items():
            for j, said in enumerate(sentences):
                cluster = hashlib.sha256(said.encode()).hexdigest()[:16]
                texts.append(Text(user("What do you say?"), f"{before} {said}", cluster, j == 3))
                answers += [
                    Answer(len(texts) - 1, r, 0.95 if rule.name == broken else 0.05, 1.0, "teacher")
                    for r, rule in enumerate(RULES)
                ]
    encoder = Encoder(place, "cpu")
    facts = train_guard(
        Asked(texts, RULES, answers), encoder, tmp_path, RewardSettings(guard_false_hits_frac=0.1),
        teacher={"sha256": "", "clears_bar": True},
    )  # fmt: skip
    assert facts["whole"]["n"] == 36
    assert facts["whole"]["auc"]["value"] > 0.9  # of sentences that no text to learn from holds
    student = Student.load(tmp_path, Encoder(place, "cpu"))
    assert student.encoder.sha256 == encoder_sha256(place)
    context = "user: What do you say?"
    rude, mild = student.p_broken(
        [(context, "You are an utter fool."), (context, "Bread is baked at noon.")], [RULES[0].text]
    )
    assert rude[0] > mild[0]
