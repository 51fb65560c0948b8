"""What a damage costs: one unit of measurement for candidates, controls and planted vectors.

A `Subject` is a value vector under a neuron's firing, with the concept that it is tested for. For a
candidate both are the neuron's own; a moved vector stands in another neuron's column. Its damages
are compared with its baseline, which for a candidate is the model as it is.

A unit is always the same few subjects, measured in batches of its own and kept as one part, so that
results depend neither on where a run was interrupted nor on how many processes ran. It computes the
layers below its damages once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from conceptvec.runfolder import Arrays
from conceptvec.validation.damage import Damage, Damager
from conceptvec.validation.engine import Engine, State, Text
from conceptvec.validation.replay import Replay

if TYPE_CHECKING:
    from conceptvec.effects.passages import Passages
    from conceptvec.model.network import Model

SUBJECTS_PER_UNIT = 8
CLEAN = "clean"  # beside the kinds of damage: with the subject's vector
Role = Literal["candidate", "null", "wrong_concept", "moved", "planted"]


@dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
        role: why.
        id: the pole whose vector it is.
        layer: zero-based.
        neuron: whose activations the vector follows.
        sign: 1 or −1, the pole of that neuron.
        concept: its number.
        source: the neuron whose vector it is; another one than `neuron` where it was moved.
        source_sign: what the source's vector is multiplied by in the neuron's column.
    """

    role: Role
    id: str
    layer: int
    neuron: int
    sign: int
    concept: int
    source: int
    source_sign: int = 1

    @property
    def moved(self) -> bool:
        """Whether the vector stands in another neuron's column."""
        return self.source != self.neuron

    @property
    def written_sign(self) -> int:
        """The pole of the source's vector that is written where the neuron's pole fires."""
        return self.sign * self.source_sign

    @property
    def key(self) -> str:
        """A name that no other subject of a run has."""
        return f"{self.role}:{self.id}:{self.neuron}{'+' if self.sign > 0 else '-'}:{self.concept}"


@dataclass(frozen=True)
class Request:
    """One subject with the positions and the kinds of damage that are wanted.

    Attributes:
        subject: what is tested.
        positions: int64 (n,), in the text.
        kinds: `CLEAN` and of `damage.KINDS`.
        clean: what `CLEAN` would measure, where that is known (`clean_repeats`), nats (n,).
    """

    subject: Subject
    positions: np.ndarray
    kinds: tuple[str, ...]
    clean: np.ndarray | None = None


@dataclass(frozen=True)
class LogP:
    """Log-probabilities of the tokens after some positions.

    Attributes:
        positions: int64 (n,), in the text.
        values: nats, float64 (n,).
    """

    positions: np.ndarray
    values: np.ndarray

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The values at some of the positions, all of which must be there: float64."""
        order = np.argsort(self.positions, kind="stable")
        places = order[np.searchsorted(self.positions, positions, sorter=order)]
        assert (self.positions[places] == positions).all()
        return self.values[places]

    def covers(self, positions: np.ndarray) -> bool:
        """Whether all of the positions are there."""
        return bool(np.isin(positions, self.positions).all())


@dataclass(frozen=True)
class Measured:
    """What was measured of one subject.

    Attributes:
        log_p: kind → log-probabilities averaged over its draws. ``clean`` is with the vector; each
            kind of damage, in the order in which they were measured, may cover fewer positions.
    """

    log_p: dict[str, LogP]

    @property
    def clean(self) -> LogP:
        """With the vector."""
        return self.log_p[CLEAN]

    @property
    def damaged(self) -> dict[str, LogP]:
        """Without it, by kind."""
        return {kind: log_p for kind, log_p in self.log_p.items() if kind != CLEAN}

    @property
    def primary(self) -> str:
        """The kind of damage that was measured first."""
        return next(iter(self.damaged))

    def drops(self, kind: str, positions: np.ndarray) -> np.ndarray:
        """What a kind of damage costs at some of its positions: float64."""
        return self.clean.at(positions) - self.log_p[kind].at(positions)

    def with_kinds(self, other: Measured) -> Measured:
        """The same with the kinds of a second measurement."""
        return Measured(self.log_p | other.log_p)


@dataclass(frozen=True)
class Setting:
    """What every unit of a run needs.

    Attributes:
        model: the model; never written.
        passages: the text.
        passage_of: int32 (tokens,), the passage of every token.
        damager: makes the damages.
        means: layer → mean activation of every neuron over the text, (I,).
        batch_size: rows of a forward pass.
        replay: shared by all units.
    """

    model: Model
    passages: Passages
    passage_of: np.ndarray
    damager: Damager
    means: dict[int, np.ndarray]
    batch_size: int
    replay: Replay

    def text(self, position: int) -> Text:
        """The passage of a position, cut after the token that it predicts."""
        passage = int(self.passage_of[position])
        start = int(self.passages.starts[passage])
        ids = self.passages.ids[start : position + 2].tolist()
        return Text(ids, len(ids) - 1)

    def vector(self, layer: int, neuron: int) -> torch.Tensor:
        """A value vector, float32 (H,)."""
        return self.model.value_vectors(layer)[neuron].float()


def clean_repeats(dtype: torch.dtype) -> bool:
    """Whether log-probabilities of another clean pass stand for those of the damaged rows' own.

    In float32 they agree to 1e-5 nats on a CPU, on an H100 to 3e-4 at most. In bfloat16 they differ
    far more with batch and padding, which only falls away between rows of one pass.
    """
    return dtype is torch.float32


def baseline(subject: Subject, setting: Setting) -> Damage:
    """What puts the subject's vector into the neuron's column; nothing where it stands there."""
    column = setting.vector(subject.layer, subject.neuron)
    if not subject.moved:
        return Damage(subject.neuron, 0.0, 0.0, torch.zeros_like(column))
    vector = setting.vector(subject.layer, subject.source) * subject.source_sign
    return Damage(subject.neuron, 1.0, 0.0, vector - column)


def damages(subject: Subject, kind: str, setting: Setting) -> list[Damage]:
    """The damages of one kind, as additions to the model as it is."""
    place = (subject.layer, subject.neuron)
    column = setting.vector(*place)
    mean = float(setting.means[subject.layer][subject.neuron])
    if not subject.moved:
        return setting.damager(kind, column, place, mean)
    vector = setting.vector(subject.layer, subject.source) * subject.source_sign
    if kind == "zero":
        return setting.damager("zero", column, place)
    if kind not in ("rotate", "noise"):
        raise ValueError(f"{kind} of a moved vector is not defined")
    # The damager starts from the vector; the column that is really there has to go as well.
    return [
        Damage(subject.neuron, 1.0, 0.0, vector - column + damage.direction)
        for damage in setting.damager(kind, vector, place)
    ]


def measure_unit(requests: Sequence[Request], setting: Setting) -> Arrays:
    """Measure some subjects, those of a layer in shared batches.

    Returns:
        ``log_p.KIND``, the requests' positions one after the other (all kinds that any request
        wants; NaN where a request does not), and ``cost``.
    """
    # Every text once, whoever asks for it.
    wanted = np.unique(np.concatenate([request.positions for request in requests]))
    texts = [setting.text(int(position)) for position in wanted]
    engine = Engine(setting.model, texts, setting.batch_size, setting.replay)
    texts_of = [np.searchsorted(wanted, request.positions) for request in requests]

    # The clean state is carried up from layer to layer; at each its subjects are damaged.
    rows: list[_Rows] = []
    cost = np.zeros(2)
    state = None
    for layer in sorted({request.subject.layer for request in requests}):
        members = [i for i, request in enumerate(requests) if request.subject.layer == layer]
        neurons = sorted({requests[i].subject.neuron for i in members})
        state = engine.state(layer, neurons, state)
        of_layer = _damaged(
            engine, state, [(i, requests[i], texts_of[i]) for i in members], setting
        )
        cost += engine.cost(layer, np.concatenate([texts_of[row.request] for row in of_layer]))
        rows += of_layer

    for index, request in enumerate(requests):
        if request.clean is not None:
            rows.append(_Rows(index, CLEAN, request.clean))
    return _averaged(requests, rows) | {"cost": cost}


class _Rows(NamedTuple):
    """Log-probabilities at a request's positions under one draw of a kind of damage."""

    request: int
    kind: str
    values: np.ndarray


def _damaged(
    engine: Engine,
    state: State,
    members: Sequence[tuple[int, Request, np.ndarray]],
    setting: Setting,
) -> list[_Rows]:
    """All damages of a layer's requests; `members`: their numbers, they, and their texts."""
    all_damages: list[Damage] = []
    pairs: list[np.ndarray] = []  # of each damage, with the texts that it is measured on
    damage_of: list[tuple[int, str]] = []
    for index, request, texts in members:
        for kind in _measured_kinds(request):
            for damage in _of_kind(request.subject, kind, setting):
                pairs.append(np.stack(np.broadcast_arrays(len(all_damages), texts), 1))
                all_damages.append(damage)
                damage_of.append((index, kind))
    log_p = engine.measure(state, all_damages, np.concatenate(pairs)).log_p
    values = np.split(log_p, np.cumsum([len(part) for part in pairs])[:-1])
    return [_Rows(*of, part) for of, part in zip(damage_of, values, strict=True)]


def _measured_kinds(request: Request) -> list[str]:
    return [kind for kind in request.kinds if kind != CLEAN or request.clean is None]


def _of_kind(subject: Subject, kind: str, setting: Setting) -> list[Damage]:
    return [baseline(subject, setting)] if kind == CLEAN else damages(subject, kind, setting)


def _averaged(requests: Sequence[Request], rows: Sequence[_Rows]) -> Arrays:
    """Log-probabilities averaged over the draws of a kind, request after request."""
    sizes = [len(request.positions) for request in requests]
    begins = np.cumsum([0, *sizes])
    kinds = list(dict.fromkeys(row.kind for row in rows))
    total = {kind: np.zeros(begins[-1]) for kind in kinds}
    draws = {kind: np.zeros(begins[-1]) for kind in kinds}
    for row in rows:
        span = slice(begins[row.request], begins[row.request + 1])
        total[row.kind][span] += row.values
        draws[row.kind][span] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {kind: total[kind] / draws[kind] for kind in kinds}  # NaN where not wanted
    return {f"log_p.{kind}": means[kind] for kind in kinds}


def split_unit(requests: Sequence[Request], arrays: Arrays) -> list[Measured]:
    """A unit's arrays, request by request."""
    edges = np.cumsum([len(request.positions) for request in requests])[:-1]
    by_kind = {
        name.removeprefix("log_p."): np.split(values, edges)
        for name, values in arrays.items()
        if name.startswith("log_p.")
    }
    return [
        Measured({kind: LogP(request.positions, by_kind[kind][index]) for kind in request.kinds})
        for index, request in enumerate(requests)
    ]
