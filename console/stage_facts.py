"""What a stage brought about, in sentences. In: its `result`, of which an older cycle may lack a key. Out: texts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from console import words
from console.rewards import why
from core.language import N_, gettext, ngettext, retold
from core.language import lazy_gettext as _l

COUNT_WORDS = {
    "from_choice": _l("pairwise choices"),
    "from_correction": _l("corrections"),
    "from_rating": _l("ratings"),
    "from_rule": _l("rule verdicts"),
    "from_import": _l("imported pairs"),
    "from_ranking": _l("rankings"),
    "from_tie": _l("ties"),
    "left_out_tie": _l("ties"),
    "left_out_simulated": _l("simulated"),
    "left_out_surplus": _l("surplus judgments"),
    "left_out_equal_texts": _l("with equal texts"),
    "left_out_double": _l("doubles"),
    "left_out_frozen_suite": _l("too close to a frozen suite"),
    "merged_equal": _l("equal pairs"),
    "merged_near": _l("near-duplicates"),
}
BOOTSTRAPS = {"annotator": _l("the annotators"), "prompt cluster": _l("the prompts")}
SMOOTHING = (
    N_("the setting says so"),
    N_("only the loss robust allows for flipped judgments"),
    N_("the flip rate is undefined: %(why)s"),
    N_("%(n)s of %(total)s pairs are simulated or imported, and the flip rate is that of people's judgments here"),
    N_("flip rate of people's judgments, from %(source)s, held to %(most)s"),
    N_("flip rate of people's judgments, from %(source)s"),
)
"""Why a label smoothing was taken, as `finetune.smoothing` records it."""

SAMPLING = ("ppo", "rloo", "grpo")
"""Updates that learn from the reward of what they sample; their records are alike."""

STOPPED = (N_("the KL to the reference, %(kl)s nats, is over its limit %(limit)s"),)
"""Why PPO ended early, as `finetune.ppo.trainer` records it."""


METHODS = (
    N_("counters (RAPL)"), N_("counters (EMI)"), N_("counters (Power Gadget)"), N_("counters of its driver"), N_("by its size"),
    N_("load times nominal power, %(watts)s W"), N_("half the nominal power, %(watts)s W"), N_("none"),
    N_("not told by codecarbon"),
)  # fmt: skip
"""How the power of a part was learnt, as `training.energy` records it."""

TRACKER_PROBLEMS = (
    N_("it is not installed"), N_("it did not take all of it within %(s)s s and was ended"),
    N_("its process ended by itself"),
)  # fmt: skip
"""What became of a tracker, as `training.tracking` records it; else its own error."""


def energy_fact(energies: Sequence[dict[str, Any]]) -> str:
    """What several stages took together, how the last of them knows it, and that it is estimated; "" where there are none."""
    if not energies:
        return ""
    last = energies[-1]
    kwh, co2_kg = (math.fsum(energy[name] for energy in energies) for name in ("kwh", "co2_kg"))
    how = {part: retold(str(last.get(part, "")), METHODS) for part in ("cpu", "gpu", "ram")}
    country = last.get("country")
    place = gettext("electricity of %(country)s", country=country) if country else gettext("the world's average")
    return gettext(
        "Estimated for the whole machine: %(energy)s of energy, %(co2)s of CO2 (%(place)s). Processor: %(cpu)s; GPU: %(gpu)s;"
        " memory: %(ram)s.",
        energy=words.energy(kwh), co2=words.mass(co2_kg), place=place, **how,
    )  # fmt: skip


def tracker_facts(trackers: Sequence[dict[str, Any]]) -> list[str]:
    """What became of the trackers that were told a stage's steps."""
    facts = []
    for told in trackers:
        n = {"name": told["name"], "n": words.number(told["steps"]), "all": words.number(told["told"])}
        if problem := told["problem"]:
            why = retold(problem, TRACKER_PROBLEMS)
            facts.append(gettext("%(name)s took %(n)s of %(all)s steps: %(why)s.", **n, why=why))
        else:
            facts.append(gettext("%(name)s was told all %(all)s steps.", **n))
    return facts


def stage_facts(name: str, result: dict[str, Any]) -> list[str]:
    """A stage's result in sentences; none where it has no result."""
    return FACTS[name](result) if result and name in FACTS else []


def made_from(manifest: dict[str, Any]) -> str:
    """What a snapshot holds and what it rests on: "310 pairs of 394 judgments, 394 simulated"."""
    n, imported = len(manifest.get("judgment_ids") or []), (manifest.get("counts") or {}).get("from_import")
    told = gettext("%(pairs)s of %(judgments)s", pairs=_pairs(manifest.get("n_train")), judgments=_judgments(n))
    if imported:
        more = ngettext("%(n)s imported pair", "%(n)s imported pairs", imported, n=words.number(imported))
        told = gettext("%(these)s and %(those)s", these=told, those=more)
    if simulated := manifest.get("n_simulated"):
        told += gettext(", %(n)s simulated", n=words.number(simulated))
    return told


def _collect_facts(r: dict[str, Any]) -> list[str]:
    n = r.get("completions")
    told = {"n": words.number(n), "version": r.get("policy_version")}
    return [ngettext("%(n)s completion by %(version)s.", "%(n)s completions by %(version)s.", _int(n), **told)]


def _compare_facts(r: dict[str, Any]) -> list[str]:
    n, alike = r.get("tasks"), r.get("alike")
    told = {"n": words.number(n), "candidate": r.get("candidate"), "incumbent": r.get("incumbent")}
    pairs = ngettext(
        "%(n)s pair of %(candidate)s and %(incumbent)s for people to judge.",
        "%(n)s pairs of %(candidate)s and %(incumbent)s for people to judge.",
        _int(n), **told,
    )  # fmt: skip
    if not alike:
        return [pairs]
    same = ngettext(
        "%(n)s prompt has the same answer twice.", "%(n)s prompts have the same answer twice.", _int(alike),
        n=words.number(alike),
    )  # fmt: skip
    return [pairs, same]


def _rate_facts(r: dict[str, Any]) -> list[str]:
    n = r.get("judgments")
    return [
        ngettext(
            "%(n)s simulated judgment by a script, none by people.",
            "%(n)s simulated judgments by a script, none by people.",
            _int(n),
            n=words.number(n),
        )
    ]


def _snapshot_facts(r: dict[str, Any]) -> list[str]:
    counts = r.get("counts") or {}
    n_simulated = r.get("n_simulated") or 0
    heldout = words.number(r.get("n_heldout"))
    facts = [gettext("%(pairs)s to train on, %(n)s held out.", pairs=_pairs(r.get("n_train")), n=heldout)]
    facts.append(
        gettext("%(n)s of them rest on simulated judgments, not on people’s.", n=words.number(n_simulated))
        if n_simulated
        else gettext("None of them rests on simulated judgments.")
    )
    used = [f"{words.number(n)} {_count_word(k)}" for k, n in counts.items() if k.startswith("from_") and n]
    left = [f"{words.number(n)} {_count_word(k)}" for k, n in counts.items() if k.startswith("left_out_") and n]
    facts += [gettext("Made from %(these)s.", these=", ".join(used))] if used else []
    facts.append(gettext("Left out: %(these)s.", these=", ".join(left)) if left else gettext("Nothing was left out."))
    merged = [f"{words.number(n)} {_count_word(k)}" for k, n in counts.items() if k.startswith("merged_") and n]
    if merged:
        facts.append(gettext("Became part of pairs that ask and compare the same: %(these)s.", these=", ".join(merged)))
    facts += _shares_facts(r.get("shares") or {})
    if n := counts.get("redactions"):
        told = words.number(n)
        facts.append(ngettext("%(n)s personal detail blacked out.", "%(n)s personal details blacked out.", n, n=told))
    return facts


def _shares_facts(shares: dict[str, dict[str, Any]]) -> list[str]:
    """Who and what was held to a share of the training weight; nothing where nobody had more."""
    held = {name: found for name, found in shares.items() if found.get("held_back")}
    told = []
    if found := held.get("annotators"):
        told.append(
            ngettext(
                "%(n)s annotator had more than %(limit)s of the weight; the largest share went from %(most)s to %(left)s.",
                "%(n)s annotators had more than %(limit)s of the weight; the largest share went from %(most)s to %(left)s.",
                found["held_back"],
                **_share_words(found),
            )
        )
    if found := held.get("prompts"):
        told.append(
            ngettext(
                "%(n)s prompt had more than %(limit)s of the weight; the largest share went from %(most)s to %(left)s.",
                "%(n)s prompts had more than %(limit)s of the weight; the largest share went from %(most)s to %(left)s.",
                found["held_back"],
                **_share_words(found),
            )
        )
    if found := held.get("categories"):
        told.append(
            ngettext(
                "%(n)s category had more than %(limit)s of the weight; the largest share went from %(most)s to %(left)s.",
                "%(n)s categories had more than %(limit)s of the weight; the largest share went from %(most)s to %(left)s.",
                found["held_back"],
                **_share_words(found),
            )
        )
    return told


def _share_words(found: dict[str, Any]) -> dict[str, str]:
    shares = {name: words.percent(found[name]) for name in ("limit", "most", "left")}
    return {"n": words.number(found["held_back"]), **shares}


def _reward_facts(r: dict[str, Any]) -> list[str]:
    facts = [
        gettext(
            "Ranks %(share)s of held-out pairs as they were judged (95 %% interval %(interval)s, n %(n)s);"
            " going by length alone: %(length)s.",
            share=words.percent(r.get("accuracy")),
            interval=words.percent_interval(r.get("low"), r.get("high")),
            n=words.number(r.get("n")),
            length=words.percent(r.get("length_only")),
        )
    ]
    if "clears_bar" in r:
        facts.append(
            gettext("Its lower bound beats length alone.")
            if r["clears_bar"]
            else gettext("Its lower bound does not beat length alone, so it may have learned little else.")
        )
    facts += _certainty(r.get("calibration") or {})
    if isinstance(members := r.get("members"), int) and members > 1:
        drawn = str(BOOTSTRAPS.get(r.get("bootstrap", ""), r.get("bootstrap", "")))
        facts.append(gettext("%(n)s members, each of a draw of %(what)s.", n=members, what=drawn))
    facts.append(_trained(r.get("n_train"), r))
    if rules := r.get("rules"):
        facts += _rule_facts(rules)
    if guard := r.get("guard"):
        facts += _guard_facts(guard)
    return facts


def _certainty(calibration: dict[str, Any]) -> list[str]:
    before, after = calibration.get("ece"), calibration.get("ece_scaled")
    if after is not None:
        told = gettext(
            "Its confidence is %(before)s off, %(after)s after temperature scaling.",
            before=words.percent(before), after=words.percent(after),
        )  # fmt: skip
        return [told]
    if before is None:
        return []
    reason = why(calibration.get("undefined", ""))
    told = gettext(
        "Its confidence is %(before)s off; after temperature scaling undefined, because %(reason)s.",
        before=words.percent(before), reason=reason,
    )  # fmt: skip
    return [told]


def _rule_facts(rules: dict[str, Any]) -> list[str]:
    if reason := rules.get("undefined"):
        return [gettext("No rule reward model, because %(reason)s.", reason=why(reason))]
    unseen = rules.get("unseen") or {}
    auc = unseen.get("auc") or unseen
    n_train = words.number(rules.get("n_train"))
    if "value" not in auc:
        reason = why(auc.get("undefined", ""))
        return [
            gettext(
                "Rule reward model from %(n)s verdicts; on unseen rules undefined, because %(reason)s.",
                n=n_train, reason=reason,
            )
        ]  # fmt: skip
    return [
        gettext(
            "Rule reward model from %(n)s verdicts; on rules that it did not see its AUC is %(auc)s (95 %% interval"
            " %(low)s–%(high)s, n %(asked)s).",
            n=n_train, auc=words.number(auc["value"], 2), low=words.number(auc["low"], 2),
            high=words.number(auc["high"], 2), asked=words.number(auc["n"]),
        )
    ]  # fmt: skip


def _guard_facts(guard: dict[str, Any]) -> list[str]:
    if reason := guard.get("undefined"):
        return [gettext("No guard’s model, because %(reason)s.", reason=why(reason))]
    auc = (guard.get("whole") or {}).get("auc") or {}
    if "value" not in auc:
        return [
            gettext(
                "Guard’s model; its agreement is undefined, because %(reason)s.", reason=why(auc.get("undefined", ""))
            )
        ]
    return [
        gettext(
            "Guard’s model: it agrees with the rule reward model with an AUC of %(auc)s (95 %% interval %(low)s–%(high)s, n %(n)s).",
            auc=words.number(auc["value"], 2), low=words.number(auc["low"], 2), high=words.number(auc["high"], 2),
            n=words.number(auc["n"]),
        )
    ]  # fmt: skip


def _update_facts(r: dict[str, Any]) -> list[str]:
    if r.get("method") in SAMPLING:
        return _sampling_facts(r)
    loss, parameters = words.number(r.get("loss")), words.number(r.get("trainable_parameters"))
    facts = [
        _trained(r.get("n_pairs"), r),
        gettext("Mean loss over the run %(loss)s nats; %(n)s trained parameters.", loss=loss, n=parameters),
    ]
    facts[1:1] = _left_out_of_update(r)
    weights = r.get("weights") or {}
    if weights.get("least") != weights.get("most"):
        facts.append(
            gettext(
                "Pairs weigh %(least)s to %(most)s, %(mean)s on average.",
                least=words.number(weights["least"], 2), most=words.number(weights["most"], 2),
                mean=words.number(weights["mean"], 2),
            )
        )  # fmt: skip
    if smoothing := r.get("label_smoothing"):
        why = retold(str(smoothing["why"]), SMOOTHING)
        facts.append(gettext("Label smoothing %(value)s: %(why)s.", value=words.number(smoothing["value"]), why=why))
    if version := r.get("policy_version"):
        facts.append(gettext("Made the candidate %(version)s.", version=version))
    return facts


def _left_out_of_update(r: dict[str, Any]) -> list[str]:
    facts = []
    if ties := r.get("ties"):
        facts.append(
            ngettext(
                "%(n)s tie left out: it prefers no side.", "%(n)s ties left out: they prefer no side.", ties,
                n=words.number(ties),
            )
        )  # fmt: skip
    if equal := r.get("dropped_equal"):
        facts.append(
            ngettext(
                "%(n)s pair left out whose sides are equal as far as they are learnt.",
                "%(n)s pairs left out whose sides are equal as far as they are learnt.", equal, n=words.number(equal),
            )
        )  # fmt: skip
    return facts


def _sampling_facts(r: dict[str, Any]) -> list[str]:
    n, told = r.get("steps"), words.number(r.get("samples"))
    facts = [
        ngettext(
            "%(method)s: learnt from %(samples)s completions of its own on %(prompts)s prompts, in %(n)s step.",
            "%(method)s: learnt from %(samples)s completions of its own on %(prompts)s prompts, in %(n)s steps.",
            _int(n),
            method=str(r["method"]).upper(),
            n=words.number(n),
            samples=told,
            prompts=words.number(r.get("n_prompts")),
        )
    ]
    if dropped := r.get("dropped_long"):
        told = words.number(dropped)
        facts.append(
            ngettext("%(n)s prompt dropped as too long.", "%(n)s prompts dropped as too long.", dropped, n=told)
        )
    if log := [row for row in r.get("log") or [] if isinstance(row, dict)]:
        facts.append(
            gettext(
                "Mean reward %(first)s at the first step, %(last)s at the last, with a KL to the reference of %(kl)s nats per completion.",
                first=words.number(log[0].get("reward")),
                last=words.number(log[-1].get("reward")),
                kl=words.number(log[-1].get("kl"), 2),
            )
        )
    if stopped := r.get("stopped"):
        facts.append(gettext("Ended early: %(why)s.", why=retold(str(stopped), STOPPED)))
    if n := (r.get("sampler_counts") or {}).get("encoded_again"):
        facts.append(
            ngettext(
                "The engine told no tokens of %(n)s completion; its text was encoded again.",
                "The engine told no tokens of %(n)s completions; their texts were encoded again.",
                n,
                n=words.number(n),
            )
        )
    if version := r.get("policy_version"):
        facts.append(gettext("Made the candidate %(version)s.", version=version))
    return facts


def _trained(n_pairs: Any, r: dict[str, Any]) -> str:
    n = r.get("steps")
    steps = ngettext("%(n)s step", "%(n)s steps", _int(n), n=words.number(n))
    if dropped := r.get("dropped_long"):
        return gettext(
            "Trained on %(pairs)s, %(n)s dropped as too long; %(steps)s.",
            pairs=_pairs(n_pairs),
            n=words.number(dropped),
            steps=steps,
        )
    return gettext("Trained on %(pairs)s, none dropped as too long; %(steps)s.", pairs=_pairs(n_pairs), steps=steps)


def _gate_facts(r: dict[str, Any]) -> list[str]:
    version = r.get("policy_version", gettext("The candidate"))
    if r.get("passed"):
        return [gettext("%(version)s passed every check.", version=version)]
    failed = ", ".join(words.check_name(name) for name in r.get("failed") or [])
    return [gettext("%(version)s failed: %(these)s.", version=version, these=failed or gettext("no check is named"))]


def _promote_facts(r: dict[str, Any]) -> list[str]:
    version = r.get("policy_version", gettext("The candidate"))
    if r.get("promoted"):
        return [gettext("%(version)s went live.", version=version)]
    return [gettext("%(version)s was refused; the incumbent stays.", version=version)]


FACTS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "collect": _collect_facts,
    "compare": _compare_facts,
    "rate": _rate_facts,
    "snapshot": _snapshot_facts,
    "reward": _reward_facts,
    "update": _update_facts,
    "gate": _gate_facts,
    "promote": _promote_facts,
}


def _pairs(n: Any) -> str:
    return ngettext("%(n)s pair", "%(n)s pairs", _int(n), n=words.number(n))


def _judgments(n: int) -> str:
    return ngettext("%(n)s judgment", "%(n)s judgments", n, n=words.number(n))


def _int(n: Any) -> int:
    """The number that decides between singular and plural; of what is missing, the plural."""
    return n if isinstance(n, int) else 0


def _count_word(key: str) -> str:
    return str(COUNT_WORDS[key]) if key in COUNT_WORDS else key.split("_", 1)[-1].replace("_", " ")
