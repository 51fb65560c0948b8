"""Which value vectors promote given words: a search over all neurons of all layers, both poles.

A word stands for every token that is one of its forms: any case, with or without the space before
it, light stemming (`lexicon.lemma`). For each neuron and form t the readout is taken against the
neuron's own distribution over the vocabulary, ``y_t = (z_t − mean z) / std z`` with ``mean z = d ·
mean(E)`` and ``var z = dᵀ Cov(E) d``, which needs no readout. A word has its best form's y, a
neuron's **strength** is the mean over the words, and its **standing** is that strength against the
strengths of its own layer and pole (in standard deviations), since late layers have sharper
readouts than early ones. The best are projected in full for their top tokens and their forms' exact
ranks.

From a finished run only the kept lists are searched: a word that is not in a neuron's list counts
as 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.config import Config, parse_layers
from conceptvec.errors import RequestError
from conceptvec.extraction.projection import Projector
from conceptvec.extraction.stage import make_projector
from conceptvec.model.ambient import set_aside
from conceptvec.model.powers import near_one
from conceptvec.model.weights import Weights, load_weights
from conceptvec.records import Pole, Sign
from conceptvec.runfolder import Arrays, manifests, read_part
from conceptvec.scoring.evidence import TINY
from conceptvec.scoring.words import lemma, normalise
from conceptvec.text import plain
from conceptvec.tools.found import Found

SHOWN_TOKENS = 15


@dataclass(frozen=True)
class Readouts:
    """How strongly the neurons of one layer promote every form.

    Attributes:
        layer: zero-based.
        neurons: their numbers (n,).
        by_sign: sign of the pole → y (n, T), larger is more promoted.
    """

    layer: int
    neurons: np.ndarray
    by_sign: Mapping[Sign, np.ndarray]


@dataclass(frozen=True)
class Match:
    """A pole that promotes the words.

    Attributes:
        strength: mean over the words of the best form's y.
        standing: that, against the strengths of the layer's neurons, same pole.
        rank: among the layer's neurons, from 1.
        per_word: the best form's y of every word.
    """

    pole: Pole
    strength: float
    standing: float
    rank: int
    per_word: tuple[float, ...]


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens as the search needs them: readout, texts, and the words' forms."""

    projector: Projector
    texts: list[str]
    forms: dict[str, list[int]]

    @property
    def targets(self) -> list[int]:
        """All forms' token ids, word by word."""
        return [token for tokens in self.forms.values() for token in tokens]

    @property
    def starts(self) -> np.ndarray:
        """Where each word's forms begin among the targets."""
        return np.cumsum([0, *(len(tokens) for tokens in self.forms.values())])[:-1]


def word_forms(words: Sequence[str], texts: list[str], masked: np.ndarray) -> dict[str, list[int]]:
    """The tokens that are a form of each word: word → ids.

    Raises:
        RequestError: a word has no token of its own in this vocabulary.
    """
    keys = {word: lemma(normalise(word)) or normalise(word) for word in words}
    forms: dict[str, list[int]] = {word: [] for word in words}
    for token, text in enumerate(texts):
        shown = "" if masked[token] else normalise(text)
        for word, key in keys.items():
            if shown and key in (shown, lemma(shown)):
                forms[word].append(token)
    if missing := [word for word, tokens in forms.items() if not tokens]:
        raise RequestError(
            "find: no token of this vocabulary is a form of "
            f"{', '.join(map(repr, missing))}; "
            "expected words that are one token: leave them out or give shorter ones"
        )
    return forms


@set_aside
def find(
    words: Sequence[str],
    config: Config,
    limit: int = 20,
    run: str | Path | None = None,
    asked: Collection[str] | None = None,
) -> Found:
    """The poles that promote the words most.

    Args:
        words: one word or more; together they rank a pole by its mean strength.
        config: model, revision, device, layers, fold.
        limit: poles in the answer.
        run: a finished run's folder, whose kept lists are searched instead of the weights.
        asked: the options that were given; by default those that are not at their defaults. The
            run has its own model, revision, precision and fold, and no others are taken for them.

    Returns:
        a JSON document: the words' forms, the neurons examined, and the best poles.
    """
    if not words or not all(normalise(word) for word in words):
        raise RequestError(
            "find: got no word; expected one word or more, such as: find Harry Potter Hogwarts"
        )
    manifest: dict[str, Any] = {}
    if run is not None:
        usual = asdict(Config())
        changed = [name for name, value in asdict(config).items() if value != usual[name]]
        config, manifest = _of_run(Path(run), config, changed if asked is None else asked)
    model = load_weights(config)
    projector, texts, masked = make_projector(model, SHOWN_TOKENS)
    forms = word_forms(list(dict.fromkeys(words)), texts, masked.numpy())
    vocabulary = Vocabulary(projector, texts, forms)
    if run is None:
        layers = _from_weights(model, vocabulary, config)
    else:
        layers = _from_run(Path(run), manifest, model, vocabulary, config)

    # Only the best of every layer and pole are kept, and of those the ones that stand out most.
    matches, examined = list[Match](), 0
    for readouts in layers:
        examined += len(readouts.neurons)
        for sign in readouts.by_sign:
            matches += _best(readouts, sign, vocabulary.starts, limit)
    matches = sorted(matches, key=lambda m: (-float(plain(m.standing) or 0), m.pole.id))[:limit]
    return Found(
        {
            "words": {word: [texts[token] for token in tokens] for word, tokens in forms.items()},
            "model": model.name,
            "revision": model.revision,
            "fold": config.fold,
            "source": "weights" if run is None else str(run),
            "neurons_examined": examined,
            "results": _described(matches, model, vocabulary, config.fold),
        }
    )


def _best(readouts: Readouts, sign: Sign, starts: np.ndarray, limit: int) -> list[Match]:
    """The strongest poles of a layer that promote the words at all."""
    per_word = np.maximum.reduceat(readouts.by_sign[sign], starts, axis=1)  # (n, words)
    strength = per_word.mean(1)
    standing = (strength - strength.mean()) / max(float(strength.std()), 1e-9)
    order = np.argsort(-strength, kind="stable")[:limit]
    return [
        Match(
            pole=Pole(readouts.layer, int(readouts.neurons[row]), sign),
            strength=float(strength[row]),
            standing=float(standing[row]),
            rank=rank,
            per_word=tuple(map(float, per_word[row])),
        )
        for rank, row in enumerate(order, 1)
        if strength[row] > 0
    ]


def _from_weights(model: Weights, vocabulary: Vocabulary, config: Config) -> Iterator[Readouts]:
    """Every neuron of the layers, from moments and the forms' own rows alone."""
    targets = torch.tensor(vocabulary.targets)
    rows = model.unembedding[targets.to(model.device)].float() - vocabulary.projector.mean
    covariance = vocabulary.projector.covariance()
    for layer in tqdm(parse_layers(config.layers, model.n_layers), desc="find", unit="layer"):
        d, _ = near_one(model.readout_directions(layer, config.fold))  # (I, H)
        variance = ((d @ covariance) * d).sum(1, keepdim=True)
        deviation = variance.clamp(min=1e-30).sqrt()
        y = ((d @ rows.T.contiguous()) / deviation).cpu().numpy()  # (I, T)
        yield Readouts(layer, np.arange(len(y)), {"+": y, "-": -y})


def _of_run(run: Path, config: Config, asked: Collection[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration with what is a finished run's own, and the run's manifest.

    A model that was asked for is taken: its fingerprint will tell whether it is the run's.
    """
    try:
        manifest = manifests(run)[0]
        was = manifest["configuration"] | {"dtype": manifest["model"]["dtype"]}
        kept = {name: was[name] for name in ("model", "revision", "dtype", "fold")}
    except (IndexError, KeyError):
        raise RequestError(
            f"find: {run} is no run folder; expected one that `conceptvec run` wrote"
        ) from None
    for name in asked:
        if name in ("fold", "dtype") and getattr(config, name) not in (kept[name], "auto"):
            raise RequestError(
                f"--{name}: {run} was made with {kept[name]}, asked for is "
                f"{getattr(config, name)}; omit it, or omit --run"
            )
    if "model" in asked:
        kept |= {"model": config.model, "revision": config.revision}
    return replace(config, **kept), manifest


def _from_run(
    run: Path, manifest: dict[str, Any], model: Weights, vocabulary: Vocabulary, config: Config
) -> Iterator[Readouts]:
    """The neurons whose lists a run has kept."""
    if manifest["model"].get("fingerprint") != model.fingerprint:
        raise RequestError(
            f"--model: {run} was made from other weights than those of {model.name} (the "
            f"fingerprints differ); give the run's own model, or omit --run"
        )
    finished = {
        f"projections/layer_{layer:02d}.safetensors": layer
        for layer in parse_layers(config.layers, model.n_layers)
    }
    finished = {name: layer for name, layer in finished.items() if name in manifest["parts"]}
    if not finished:
        raise RequestError(
            f"find: {run} holds none of the layers; let `conceptvec run` finish Stage 1, "
            "or omit --run"
        )
    for name, layer in finished.items():
        arrays = read_part(run / name, manifest["parts"][name])
        if arrays is None:
            raise RequestError(
                f"find: {run / name} is damaged; `conceptvec run` makes it anew, or omit --run"
            )
        yield Readouts(
            layer,
            arrays["neurons"],
            {
                "+": _listed(arrays, "top", 1, vocabulary.targets),
                "-": _listed(arrays, "bottom", -1, vocabulary.targets),
            },
        )


def _listed(arrays: Arrays, name: str, direction: int, targets: list[int]) -> np.ndarray:
    """The targets' y as the kept lists of one pole say it, 0 where they do not: (n, T)."""
    deviation = np.sqrt(np.maximum(arrays["variance"], TINY))[:, None]
    y = direction * (arrays[f"{name}_values"] - arrays["mean"][:, None]) / deviation
    y = np.maximum(y, 0)
    per_target = [np.where(arrays[f"{name}_ids"] == t, y, 0).max(1) for t in targets]
    return np.stack(per_target, axis=1)


def _described(
    matches: list[Match], model: Weights, vocabulary: Vocabulary, fold: str
) -> list[dict[str, Any]]:
    """The matches with their top tokens, and every word's best form with its rank."""
    if not matches:
        return []
    projector, texts = vocabulary.projector, vocabulary.texts
    poles = [match.pole for match in matches]
    rows = [model.readout_directions(p.layer, fold, p.neuron) * p.direction for p in poles]
    d = torch.stack(rows)  # (n, H)
    top = projector(d)
    chunks = projector.chunks(torch.float32)
    z = torch.cat([(part @ d.T.contiguous()).cpu() for _, part in chunks])  # (shown, n)
    place = torch.full((model.vocab_size,), -1)
    place[projector.shown] = torch.arange(len(projector.shown))

    results = []
    for row, match in enumerate(matches):
        readout = z[:, row]
        tokens = zip(top.top_ids[row].tolist(), top.top_values[row], strict=True)
        words = {}
        for (word, forms), strength in zip(vocabulary.forms.items(), match.per_word, strict=True):
            best = max(forms, key=lambda token: float(readout[place[token]]))  # noqa: B023
            rank = 1 + int((readout > readout[place[best]]).sum())
            words[word] = {"strength": plain(strength), "token": texts[best], "rank": rank}
        results.append(
            {
                "id": match.pole.id,
                "layer": match.pole.layer,
                "neuron": match.pole.neuron,
                "pole": match.pole.sign,
                "standing": plain(match.standing),
                "strength": plain(match.strength),
                "rank_in_layer": match.rank,
                "words": words,
                "top_tokens": [[texts[token], plain(value)] for token, value in tokens],
            }
        )
    return results
