"""What the damage costs on a concept's cloze prompts. It is shown beside a verdict, never decides.

An answer that is not among the model's thousand likeliest tokens says nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec import text
from conceptvec.concepts import Prompt
from conceptvec.runfolder import Arrays
from conceptvec.streams import rng
from conceptvec.text import DASH, number, plain, printable
from conceptvec.validation.damage import Damage
from conceptvec.validation.engine import Answers, Engine, split_answer
from conceptvec.validation.measure import Setting, Subject, damages
from conceptvec.validation.replay import Replay

if TYPE_CHECKING:
    from conceptvec.model.network import Model

KNOWN_BELOW = 1000  # tokens likelier than a known answer
UNRELATED, NEUTRAL = 60, 32  # prompts of other concepts, and neutral ones for the divergence


@dataclass(frozen=True)
class PromptTable:
    """All cloze prompts of a run.

    Attributes:
        engine: over all of them.
        groups: concept, or ``neutral`` → its known prompts.
        members: concept, or ``neutral`` → all its prompts.
        clean: what the model says of every answer without damage.
    """

    engine: Engine
    groups: Mapping[str, list[int]]
    members: Mapping[str, range]
    clean: Answers

    @classmethod
    def build(
        cls,
        model: Model,
        prompts: Mapping[str, Sequence[Prompt]],
        batch_size: int,
        chat: bool,
        replay: Replay | None = None,
    ) -> PromptTable | None:
        """Run every prompt clean; None where there are no prompts."""
        every = [prompt for group in prompts.values() for prompt in group]
        if not every:
            return None
        texts = [split_answer(model, prompt, chat) for prompt in every]
        engine = Engine(model, texts, batch_size, replay)
        clean = engine.clean(range(len(every)))
        groups: dict[str, list[int]] = {}
        members: dict[str, range] = {}
        start = 0
        for name, group in prompts.items():
            members[name] = range(start, start + len(group))
            groups[name] = [i for i in members[name] if clean.better[i] < KNOWN_BELOW]
            start += len(group)
        return cls(engine, groups, members, clean)

    def unrelated(self, concept: str, seed: int) -> list[int]:
        """A random sample of the other concepts' prompts."""
        others = sorted(
            index
            for name, group in self.groups.items()
            if name not in (concept, "neutral")
            for index in group
        )
        chosen = rng(seed, f"unrelated prompts of {concept}").permutation(others)[:UNRELATED]
        return sorted(int(index) for index in chosen)

    def neutral(self) -> list[int]:
        """The neutral prompts on which the divergence is measured."""
        return self.groups.get("neutral", [])[:NEUTRAL]


def measure_transfer(
    table: PromptTable, subject: Subject, concept: str, setting: Setting, seed: int
) -> Arrays:
    """Zero ablation of one vector on prompts: drops for the concept and elsewhere, divergence."""
    of_concept, unrelated = table.groups.get(concept, []), table.unrelated(concept, seed)
    neutral = table.neutral()
    wanted = np.array([*of_concept, *unrelated, *neutral], int)
    engine = table.engine
    state = engine.state(subject.layer, [subject.neuron])
    vector = setting.vector(subject.layer, subject.neuron)
    nothing = Damage(subject.neuron, 0.0, 0.0, vector)
    zero = damages(subject, "zero", setting)[0]
    pairs = [(which, text) for which in (0, 1) for text in wanted]
    reference = engine.clean_distribution(neutral) if neutral else {}
    answers = engine.measure(state, [nothing, zero], np.array(pairs, int), reference)
    clean, damaged = answers.log_p.reshape(2, -1)
    drops = clean - damaged
    return {
        "own": drops[: len(of_concept)],
        "unrelated": drops[len(of_concept) : len(of_concept) + len(unrelated)],
        "divergence": answers.divergence.reshape(2, -1)[1][len(of_concept) + len(unrelated) :],
    }


def transfer_entry(arrays: Arrays) -> dict[str, float | int | None] | None:
    """The `prompts` part of an entry; None where the concept has no known prompt."""

    def mean(values: np.ndarray) -> float | None:
        return plain(values.mean()) if len(values) else None

    if not len(arrays["own"]):
        return None
    return {
        "concept_drop": mean(arrays["own"]),
        "unrelated_drop": mean(arrays["unrelated"]),
        "n": len(arrays["own"]),
        "neutral_kl": mean(arrays["divergence"]),
    }


def knowledge(table: PromptTable, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Any]:
    """How well the model knows every answer, and which prompts are left out: concept → facts."""
    clean = table.clean
    facts = {}
    for name, members in table.members.items():
        answers = [
            {
                "prompt": prompt.prompt,
                "answer": prompt.answer,
                "log_p": plain(clean.log_p[index]),
                "rank": int(clean.better[index]) + 1,
                "known": index in table.groups[name],
            }
            for prompt, index in zip(prompts[name], members, strict=True)
        ]
        at = list(members)
        facts[name] = {
            "prompts": len(at),
            "known": len(table.groups[name]),
            "median_log_p": plain(np.median(clean.log_p[at])) if at else None,
            "median_rank": plain(np.median(clean.better[at]) + 1) if at else None,
            "answers": answers,
        }
    return facts


def knowledge_table(document: Mapping[str, Any]) -> str:
    """The same as text, with the prompts that are left out."""
    body, left_out = [], []
    for name, group in document["concepts"].items():
        rank = group["median_rank"]
        body.append(
            [
                printable(name),
                group["prompts"],
                group["known"],
                number(group["median_log_p"], 2),
                DASH if rank is None else f"{rank:,.0f}",
            ]
        )
        for answer in group["answers"]:
            if not answer["known"]:
                sentence = printable(answer["prompt"] + answer["answer"])
                left_out.append(f"  {sentence}  (rank {answer['rank']:,})")
    headers = ("concept", "prompts", "known", "median log p", "median rank")
    rule = (
        "log p in nats per answer token. Left out, because an answer token is not among the "
        f"{KNOWN_BELOW:,} likeliest: {len(left_out)}"
    )
    return "\n".join([text.table(body, headers), "", rule, *left_out])
