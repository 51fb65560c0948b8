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
from conceptvec.effects.passages import MAX_TOKENS
from conceptvec.errors import RequestError
from conceptvec.runfolder import Arrays
from conceptvec.streams import rng
from conceptvec.text import DASH, number, plain, printable
from conceptvec.validation.engine import Answers, Engine, Text
from conceptvec.validation.measure import Setting, Subject, damages
from conceptvec.validation.replay import Replay

if TYPE_CHECKING:
    import torch

    from conceptvec.model.network import Model

KNOWN_BELOW = 1000  # tokens likelier than a known answer
MEASURED = ("own", "unrelated", "divergence")  # of each vector
UNRELATED, NEUTRAL = 60, 32  # prompts of other concepts, and neutral ones for the divergence


@dataclass(frozen=True)
class PromptTable:
    """All cloze prompts of a run.

    Attributes:
        engine: over all of them.
        groups: concept, or ``neutral`` → its known prompts.
        members: concept, or ``neutral`` → all its prompts.
        clean: what the model says of every answer without damage.
        reference: a neutral prompt → clean log-probabilities of its first answer token (V,).
    """

    engine: Engine
    groups: Mapping[str, list[int]]
    members: Mapping[str, range]
    clean: Answers
    reference: Mapping[int, torch.Tensor]

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
        neutral = groups.get("neutral", [])[:NEUTRAL]
        return cls(engine, groups, members, clean, engine.clean_distribution(neutral))

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
        return sorted(self.reference)


def split_answer(model: Model, prompt: Prompt, chat: bool = False) -> Text:
    """A cloze prompt with its answer as tokens.

    Raises:
        RequestError: the prompt and its answer cannot be told apart in tokens, or are too long.
    """
    before = model.encode(prompt.prompt, chat)
    ids = model.encode(prompt.prompt + prompt.answer, chat)
    if len(ids) > MAX_TOKENS:
        raise RequestError(
            f"the prompt {prompt.prompt[:40]!r}… has {len(ids)} tokens with its answer, expected "
            f"at most {MAX_TOKENS}; shorten it"
        )
    pairs = enumerate(zip(before, ids, strict=False))
    start = next((i for i, (x, y) in pairs if x != y), min(len(before), len(ids)))
    if start < 1 or start >= len(ids):
        raise RequestError(
            f"the answer {prompt.answer!r} adds no token to the prompt {prompt.prompt!r}; answers "
            "need a text of their own, usually with a leading space"
        )
    return Text(ids, start)


def measure_transfer(
    table: PromptTable,
    subjects: Sequence[Subject],
    concepts: Sequence[str],
    setting: Setting,
    seed: int,
) -> list[Arrays]:
    """Zero ablation on prompts: drops for the concept and elsewhere, divergence on neutral ones.

    Args:
        table: of all prompts.
        subjects: of one layer, whose clean state they share; no moved vectors.
        concepts: the name of each one's concept.
        setting: model and damages.
        seed: of the run.
    """
    engine, neutral = table.engine, table.neutral()
    state = engine.state(subjects[0].layer, sorted({subject.neuron for subject in subjects}))
    measured = []
    for subject, concept in zip(subjects, concepts, strict=True):
        of_concept, unrelated = table.groups.get(concept, []), table.unrelated(concept, seed)
        wanted = np.array([*of_concept, *unrelated, *neutral], int)
        pairs = np.stack([np.zeros_like(wanted), wanted], 1)
        answers = engine.measure(state, damages(subject, "zero", setting), pairs, table.reference)
        drops = table.clean.log_p[wanted] - answers.log_p
        first, second = len(of_concept), len(of_concept) + len(unrelated)
        measured.append(
            {
                "own": drops[:first],
                "unrelated": drops[first:second],
                "divergence": answers.divergence[second:],
            }
        )
    return measured


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
