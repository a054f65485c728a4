"""The student: the encoder's states of a completion and of a rule → P(broken).

The rule's words choose what is looked for in the text (Perez et al. 2018, arXiv:1709.07871, feature-wise modulation), so a rule
that nobody has judged, or whose words were changed a moment ago, is asked about without training:

    h = GELU((U x + u) ⊙ (1 + A r) + V r + S s)        x (3H): states of completion and context; r (H): the rule's
    logit = w · h + b                                  s (2): cosines of the rule with completion and context

All that hangs on the text alone (U x) is computed once for all rules, and all that hangs on the rule alone (A r, V r) once for
all texts, so a further rule costs next to nothing. Weights are a dictionary of tensors by these names.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from reward.guard.encoder import STATES_OF, Encoder

HEAD = "head.safetensors"
STAGE = "guard"
NAMES = ("U", "u", "A", "V", "S", "w", "b")
KEPT_RULES = 2048
PROBE_TOLERANCE = 0.2
"""How far the logits of known texts may lie from those when the model was made: bf16 does not reach it, a lost head does."""
PROBE = (
    ("How do I keep a dunnock safe in winter?", "Hang a feeder low, and near a hedge.", "Do not threaten anyone."),
    ("How do I keep a dunnock safe in winter?", "I will hurt you if you do.", "Do not threaten anyone."),
)

Weights = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A rule that holds: its lasting name and its words."""

    name: str
    text: str


@dataclass(frozen=True)
class Thresholds:
    """Where P(broken) becomes a hit: by a rule's name while its words are those of training, else one for all.

    Attributes:
        by_rule: name → (the rule's words, threshold).
        common: for rules that have none of their own.
        false_hits_frac: the share of clean completions that a rule may hit somewhere on their way; what they are chosen for.
    """

    by_rule: Mapping[str, tuple[str, float]]
    common: float
    false_hits_frac: float

    def of(self, rule: Rule) -> float:
        """The threshold of a rule as it is worded now."""
        text, value = self.by_rule.get(rule.name, ("", self.common))
        return value if text == rule.text else self.common


def modulation(weights: Weights, rules: Any) -> tuple[Any, Any]:
    """(R, d) scale and shift that rules give to what is seen in a text."""
    return 1 + rules @ weights["A"].T, rules @ weights["V"].T


def seen(weights: Weights, states: Any) -> Any:
    """(N, d) of completions' states, before any rule."""
    return states @ weights["U"].T + weights["u"]


def logits(weights: Weights, states: Any, rules: Any) -> Any:
    """(N, R) logits of P(broken) at temperature 1."""
    return meet(weights, seen(weights, states), cosines(states, rules), *modulation(weights, rules))


def cosines(states: Any, rules: Any) -> Any:
    """(N, R, 2) of each rule with each completion's mean state, and with its context's."""
    import torch

    width = rules.shape[1]
    normal = torch.nn.functional.normalize
    text, context = normal(states[:, :width], dim=1), normal(states[:, -width:], dim=1)
    return torch.stack([text @ rules.T, context @ rules.T], dim=2)


def meet(weights: Weights, at: Any, cosine: Any, scale: Any, shift: Any) -> Any:
    """(N, R) logits from `seen`, `cosines` and `modulation`."""
    import torch

    inner = at[:, None] * scale[None] + shift[None] + cosine @ weights["S"].T
    return torch.nn.functional.gelu(inner) @ weights["w"] + weights["b"]


class Student:
    """A guard's model in memory, on an encoder that it may share. Several threads may ask it.

    Attributes:
        thresholds: where P(broken) becomes a hit.
    """

    def __init__(self, encoder: Encoder, weights: Weights, temperature: float, thresholds: Thresholds) -> None:
        self.encoder = encoder
        self.weights = dict(weights)
        self.temperature = temperature
        self.thresholds = thresholds
        self._rules: OrderedDict[str, tuple[Any, Any, Any]] = OrderedDict()
        self._memory = threading.Lock()

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> "Student":
        """Load a guard's model from its folder.

        Raises:
            ArtifactError: it is none, or was made with another encoder, or answers otherwise than when it was made.
        """
        record = read_record(folder)
        if record["encoder_sha256"] != encoder.sha256:
            raise ArtifactError(
                f"the guard's model in {folder} was made with the encoder {record['encoder_sha256'][:12]}…, and the one in"
                f" memory is {encoder.sha256[:12]}…; set DUNNOCK_GUARD__ENCODER to the one of before, or train a new one"
            )
        found = cls(encoder, _read_head(folder, encoder), record["temperature"], thresholds_of(record["thresholds"]))
        apart = [abs(a - b) for a, b in zip(record["probe"], found.probe(), strict=True)]
        if not all(d <= PROBE_TOLERANCE for d in apart):
            raise ArtifactError(
                f"the guard's model in {folder} answers known texts {max(apart):.3g} away from what it gave when it was made; at"
                f" most {PROBE_TOLERANCE} is expected. It is damaged and not used."
            )
        return found

    def save(self, folder: Path) -> None:
        """Its weights as safetensors; `run.json` is the trainer's to write."""
        from safetensors.torch import save_file

        save_file({name: self.weights[name].contiguous() for name in NAMES}, folder / HEAD)

    def p_broken(self, items: Sequence[tuple[str, str]], rules: Sequence[str]) -> list[list[float]]:
        """For each (context, completion) P(broken) of each rule's text, (N, R)."""
        states = self.encoder.states([self.encoder.tokens(context, text) for context, text in items])
        return self.from_states(states, rules)

    def from_states(self, states: Any, rules: Sequence[str]) -> list[list[float]]:
        """The same of completions whose (N, 3H) states are known."""
        import torch

        with torch.inference_mode():
            found: list[list[float]] = torch.sigmoid(self.logits(states, rules) / self.temperature).tolist()
        return found

    def logits(self, states: Any, rules: Sequence[str]) -> Any:
        """(N, R) logits at temperature 1; a rule's part is remembered by its words."""
        import torch

        if not rules:
            return torch.zeros(len(states), 0)
        known = [self._rule(text) for text in rules]
        vectors, scale, shift = (torch.cat(parts) for parts in zip(*known, strict=True))
        return meet(self.weights, seen(self.weights, states), cosines(states, vectors), scale, shift)

    def probe(self) -> list[float]:
        """What it says of the texts that every guard's model is asked about when it is made and loaded."""
        return [
            float(self.logits(self.encoder.states([self.encoder.tokens(context, text)]), [rule])[0, 0])
            for context, text, rule in PROBE
        ]

    def _rule(self, text: str) -> tuple[Any, Any, Any]:
        with self._memory:
            if text in self._rules:
                self._rules.move_to_end(text)
                return self._rules[text]
        vector = self.encoder.rules([text])
        found = (vector, *modulation(self.weights, vector))
        with self._memory:
            self._rules[text] = found
            while len(self._rules) > KEPT_RULES:
                self._rules.popitem(last=False)
        return found


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a guard's model.

    Raises:
        ArtifactError: it is not there, or is another stage's.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no guard's model: {error}. Train one, or name another folder.") from error
    if record.get("stage") != STAGE:
        raise ArtifactError(f"{folder} was made by the stage {record.get('stage')!r}; one of {STAGE!r} was expected")
    return record


def thresholds_of(found: Mapping[str, Any]) -> Thresholds:
    """Thresholds as a record has them."""
    by_rule = {r["rule"]: (r["text"], r["threshold"]) for r in found["by_rule"]}
    return Thresholds(by_rule, found["common"], found["false_hits_frac"])


def _read_head(folder: Path, encoder: Encoder) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / HEAD} cannot be read: {error}") from error
    wide = STATES_OF * encoder.width
    if set(weights) != set(NAMES) or weights["U"].shape[1] != wide or weights["A"].shape[1] != encoder.width:
        raise ArtifactError(f"{folder / HEAD} does not fit an encoder whose states are {encoder.width} wide")
    return weights
