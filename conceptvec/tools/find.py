"""Which value vectors promote given words: a search over all neurons of all layers, both poles.

A word stands for every token that is one of its forms: any case, with or without the space before it, light stemming
(`lexicon.lemma`). For each neuron and form t the readout is taken against the neuron's own distribution over the
vocabulary, ``y_t = (z_t − mean z) / std z`` with ``mean z = d · mean(E)`` and ``var z = dᵀ Cov(E) d``, which needs no
readout. A word has its best form's y, a neuron's **strength** is the mean over the words, and its **standing** is that
strength against the strengths of its own layer and pole (in standard deviations), since late layers have sharper
readouts than early ones. The best are projected in full for their top tokens and their forms' exact ranks.

From a finished run only the kept lists are searched: a word that is not in a neuron's list counts as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.config import Config, parse_layers
from conceptvec.errors import RequestError
from conceptvec.extraction.projection import Projector
from conceptvec.extraction.stage import make_projector
from conceptvec.model.network import Model
from conceptvec.model.weights import load_weights
from conceptvec.runfolder import manifests, read_part
from conceptvec.scoring.words import lemma, normalise
from conceptvec.scoring.stage import vector_id
from conceptvec.text import plain

SHOWN_TOKENS = 15


def word_forms(words: Sequence[str], texts: list[str], masked: np.ndarray) -> dict[str, list[int]]:
    """The tokens that are a form of each word: word → ids.

    Raises:
        RequestError: a word has no token of its own in this vocabulary.
    """
    keys = {w: lemma(normalise(w)) or normalise(w) for w in words}
    forms: dict[str, list[int]] = {w: [] for w in words}
    for i, text in enumerate(texts):
        word = "" if masked[i] else normalise(text)
        for w, key in keys.items():
            if word and (word == key or lemma(word) == key):
                forms[w].append(i)
    if missing := [w for w, ids in forms.items() if not ids]:
        raise RequestError(
            f"find: no token of this vocabulary is a form of {', '.join(map(repr, missing))}; "
            "expected words that are one token: leave them out or give shorter ones"
        )
    return forms


def find(
    words: Sequence[str], config: Config, limit: int = 20, run: str | Path | None = None
) -> dict[str, Any]:
    """The poles that promote the words most.

    Args:
        words: one word or more; together they rank a pole by its mean strength.
        config: model, revision, device, layers, fold.
        limit: poles in the answer.
        run: a finished run's folder, whose kept lists are searched instead of the weights.

    Returns:
        a JSON document: the words' forms, the neurons examined, and the best poles.
    """
    if not words or not all(normalise(w) for w in words):
        raise RequestError(
            "find: got no word; expected one word or more, such as: find Harry Potter Hogwarts"
        )
    manifest: dict[str, Any] = {}
    if run is not None:
        config, manifest = _of_run(Path(run), config)
    model = load_weights(config)
    projector, texts, masked = make_projector(model, SHOWN_TOKENS)
    forms = word_forms(list(dict.fromkeys(words)), texts, masked.numpy())
    first = np.cumsum([0, *(len(ids) for ids in forms.values())])[:-1]
    targets = torch.tensor([i for ids in forms.values() for i in ids])
    if run is None:
        source = _from_weights(model, projector, config, targets)
    else:
        source = _from_run(Path(run), manifest, model, config, targets.numpy())
    found: list[dict[str, Any]] = []
    examined = 0
    for layer, neurons, poles in source:
        examined += len(neurons)
        for pole, y in poles.items():  # y (n, T), larger is more promoted
            per_word = np.maximum.reduceat(y, first, axis=1)  # (n, words)
            strength = per_word.mean(1)
            standing = (strength - strength.mean()) / max(float(strength.std()), 1e-9)
            best = np.argsort(-strength, kind="stable")[:limit]
            found += [
                {
                    "id": vector_id(layer, int(neurons[i]), pole), "layer": layer, "neuron": int(neurons[i]),
                    "pole": pole, "standing": plain(standing[i]), "strength": plain(strength[i]),
                    "rank_in_layer": rank, "words": dict(zip(forms, map(plain, per_word[i]), strict=True)),
                }
                for rank, i in enumerate(best, 1) if strength[i] > 0
            ]  # fmt: skip
    found = sorted(found, key=lambda f: (-f["standing"], f["id"]))[:limit]
    _describe(found, model, projector, config.fold, forms, texts)
    return {
        "words": {w: [texts[i] for i in ids] for w, ids in forms.items()}, "model": model.name,
        "revision": model.revision, "fold": config.fold, "source": "weights" if run is None else str(run),
        "neurons_examined": examined, "results": found,
    }  # fmt: skip


Source = Iterator[
    tuple[int, np.ndarray, dict[str, np.ndarray]]
]  # layer, neurons (n,), pole → y (n, T)


def _from_weights(
    model: Model, projector: Projector, config: Config, targets: torch.Tensor
) -> Source:
    rows = model.unembedding[targets.to(model.device)].float() - projector.mean
    covariance = projector.covariance()
    for layer in tqdm(parse_layers(config.layers, model.n_layers), desc="find", unit="layer"):
        d = model.readout_directions(layer, config.fold)
        deviation = ((d @ covariance) * d).sum(1, keepdim=True).clamp(min=1e-30).sqrt()
        y = ((d @ rows.T.contiguous()) / deviation).cpu().numpy()
        yield layer, np.arange(len(y)), {"+": y, "-": -y}


def _of_run(run: Path, config: Config) -> tuple[Config, dict[str, Any]]:
    """The configuration with the model and fold of a finished run, and the run's manifest."""
    try:
        manifest = manifests(run)[0]
        was = manifest["configuration"] | {"dtype": manifest["model"]["dtype"]}
        return replace(
            config, **{k: was[k] for k in ("model", "revision", "dtype", "fold")}
        ), manifest
    except (IndexError, KeyError):
        raise RequestError(
            f"find: {run} is no run folder; expected one that `conceptvec run` wrote"
        ) from None


def _from_run(
    run: Path, manifest: dict[str, Any], model: Model, config: Config, targets: np.ndarray
) -> Source:
    if manifest["model"].get("fingerprint") != model.fingerprint:
        raise RequestError(
            f"find: {run} was made from other weights than {model.name}; run it again, or omit --run"
        )
    asked = {
        f"projections/layer_{n:02d}.safetensors": n
        for n in parse_layers(config.layers, model.n_layers)
    }
    if not (listed := [name for name in asked if name in manifest["parts"]]):
        raise RequestError(
            f"find: {run} holds none of the layers; let `conceptvec run` finish Stage 1, or omit --run"
        )
    for name in listed:
        if (a := read_part(run / name, manifest["parts"][name])) is None:
            raise RequestError(
                f"find: {run / name} is damaged; `conceptvec run` makes it anew, or omit --run"
            )
        deviation = np.sqrt(np.maximum(a["variance"], 1e-30))[:, None]
        poles = {}
        for pole, ids, values, sign in (
            ("+", "top_ids", "top_values", 1),
            ("-", "bottom_ids", "bottom_values", -1),
        ):
            y = sign * (a[values] - a["mean"][:, None]) / deviation
            poles[pole] = np.stack(
                [np.where(a[ids] == t, np.maximum(y, 0), 0).max(1) for t in targets], axis=1
            )
        yield asked[name], a["neurons"], poles


def _describe(
    found: list[dict[str, Any]], model: Model, projector: Projector, fold: str, forms: dict[str, list[int]],
    texts: list[str],
) -> None:  # fmt: skip
    """Add to each pole its top tokens and every word's best form with its rank among all shown tokens."""
    if not found:
        return
    sign = torch.tensor([1.0 if f["pole"] == "+" else -1.0 for f in found], device=model.device)
    rows = [model.readout_directions(f["layer"], fold, f["neuron"]) for f in found]
    d = torch.stack(rows) * sign[:, None]
    top = projector(d)
    z = torch.cat(
        [(part @ d.T.contiguous()).cpu() for _, part in projector.chunks(torch.float32)]
    )  # (shown, n)
    place = torch.full((model.vocab_size,), -1)
    place[projector.shown] = torch.arange(len(projector.shown))
    for i, f in enumerate(found):
        f["top_tokens"] = [
            [texts[t], plain(v)]
            for t, v in zip(top.top_ids[i].tolist(), top.top_values[i], strict=True)
        ]
        for word, ids in forms.items():
            best = max(ids, key=lambda t: float(z[place[t], i]))
            rank = 1 + int((z[:, i] > z[place[best], i]).sum())
            f["words"][word] = {"strength": f["words"][word], "token": texts[best], "rank": rank}
