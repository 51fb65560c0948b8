"""First order against real ablation: Spearman's rank correlation over neurons of all layers.

    python scripts/first_order.py RUN [even|log] [NEURONS_A_LAYER]

On some passages of a finished run's text the effect of every neuron on every concept's words is
computed twice, both poles together: to first order from the gradients, and with the neuron's
activation really replaced, by zero or by its mean, at every position but the first. Neurons are
drawn from every layer by the rank of their largest first-order effect on a concept: at even
distances over all ranks, or at even distances of the rank's logarithm, which takes the largest of
every layer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from finished_run import reopened
from tqdm import tqdm

from conceptvec.effects import rows
from conceptvec.effects.gradients import Gradients, padded
from conceptvec.effects.moved import draw_moved
from conceptvec.effects.target_words import occurrences
from conceptvec.streams import rng
from conceptvec.validation.replay import Replay

PASSAGES = 24
LONGEST = 64  # tokens of a passage
WORDS = 6  # occurrences of the concepts' words in it, at least
BATCH_ROWS = 64
LARGEST = 2  # of a layer's draws, left out in a second figure


def drawn_ranks(how: str, count: int, size: int, stream: np.random.Generator) -> np.ndarray:
    """Ranks from 0, ascending: one drawn from each of `count` equal parts of the scale."""
    edges = np.linspace(0, 1, count + 1)
    at = stream.uniform(edges[:-1], edges[1:])
    ranks = at * size if how == "even" else size**at - 1
    return np.unique(ranks.astype(int))


def by_concept(per_word: np.ndarray, concept: np.ndarray) -> np.ndarray:
    """Means over each concept's distinct words: (words, …) → (concepts, …)."""
    return np.stack([per_word[concept == number].mean(0) for number in np.unique(concept)])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation over all pairs of two arrays of one shape."""
    both = pd.DataFrame({"a": a.ravel(), "b": b.ravel()})
    return float(both.corr(method="spearman").iloc[0, 1])


class Ablation:
    """The clean states of some passages, and log p of their rows with one neuron set to a value."""

    def __init__(self, model, passages: list[np.ndarray], row: np.ndarray, position: np.ndarray):
        self.model, self.replay = model, Replay(model)
        self.ids, _ = padded(passages, model.device)
        self.row, self.before = torch.as_tensor(row), torch.as_tensor(position) - 1
        self.word = self.ids[self.row, self.before + 1]
        self.states = self.replay.embed(self.ids)
        self.layer = 0

    def at(self, layer: int) -> None:
        """Go up to a layer; layers come in ascending order."""
        self.states = self.replay.run(self.states, self.layer, layer)
        self.layer = layer

    def log_p(self, neuron: int | None = None, value: float = 0.0) -> np.ndarray:
        """Log-probabilities of the rows' words (n,), nats."""

        def set_value(_, args):
            changed = args[0].clone()
            changed[:, 1:, neuron] = value
            return (changed,)

        down = self.model.layers[self.layer].mlp.down_proj
        handle = None if neuron is None else down.register_forward_pre_hook(set_value)
        try:
            hidden = self.replay.run(self.states, self.layer)[self.row, self.before]
        finally:
            if handle is not None:
                handle.remove()
        out = []
        for start in range(0, len(hidden), BATCH_ROWS):
            logits = self.model.logits(hidden[start : start + BATCH_ROWS])
            word = self.word[start : start + BATCH_ROWS, None]
            out.append(logits.gather(1, word)[:, 0] - logits.logsumexp(1))
        return torch.cat(out).double().cpu().numpy()


def main() -> None:
    """Measure and print."""
    run_folder = sys.argv[1]
    how = sys.argv[2] if len(sys.argv) > 2 else "even"
    draws = int(sys.argv[3]) if len(sys.argv) > 3 else 12
    run = reopened(run_folder)
    config, model, text = run.config, run.model, run.text

    # Some passages with words of the concepts in them, and the first-order record of these.
    found = occurrences(text.passages, text.words)
    stream = rng(config.seed, "first order against ablation")
    short = np.flatnonzero(text.passages.lengths <= LONGEST)
    count = np.bincount(found.passage, minlength=len(text.passages))
    rich = short[count[short] >= min(WORDS, count[short].max())]
    numbers = np.sort(stream.permutation(rich)[:PASSAGES])
    passages = [text.passages.passage(int(number)) for number in numbers]
    targets = rows.targets_of(found.passage, found.position, found.word, config.seed)
    layers = list(range(model.n_layers))
    nothing = draw_moved([], 0, model.intermediate_size, set(), config.seed)
    gradients = Gradients(model, layers, torch.as_tensor(text.masked), nothing)
    inside = np.isin(targets.passage, numbers)
    effects, activity = gradients.part(passages, numbers, targets.at(inside))

    # (layers, words, neurons), per row of a word; the mean over all positions but the first.
    per_row = effects.rows[:, None]
    zero = effects.zero.sum(1) / per_row
    means = activity.pole_means().sum(1)
    mean = zero - means[:, None] * effects.gradient / per_row
    concept = text.words.word_concept[effects.words]

    chosen = effects.occurrences[effects.chosen]
    row = np.searchsorted(numbers, chosen[:, 0])
    words = text.words.token_word[
        text.passages.ids[text.passages.starts[chosen[:, 0]] + chosen[:, 1]]
    ]
    which = np.searchsorted(effects.words, words)
    tokens = sum(len(ids) for ids in passages)
    print(f"{len(chosen)} rows, {len(effects.words)} words, {tokens} tokens", flush=True)

    estimated, exact, order = {"zero": [], "mean": []}, {"zero": [], "mean": []}, []
    with torch.inference_mode():
        ablation = Ablation(model, passages, row, chosen[:, 1])
        for layer in tqdm(layers, unit="layer"):
            ablation.at(layer)
            clean = ablation.log_p()
            of_layer = {
                "zero": by_concept(zero[layer], concept),
                "mean": by_concept(mean[layer], concept),
            }
            ranked = np.argsort(-np.abs(of_layer["zero"]).max(0), kind="stable")
            for place, rank in enumerate(drawn_ranks(how, draws, len(ranked), stream)):
                neuron = int(ranked[rank])
                order.append(place)
                for kind, value in (("zero", 0.0), ("mean", float(means[layer, neuron]))):
                    lost = clean - ablation.log_p(neuron, value)
                    sums = np.bincount(which, lost, len(effects.words))
                    per_word = sums / np.bincount(which, minlength=len(effects.words))
                    exact[kind].append(by_concept(per_word, concept))
                    estimated[kind].append(of_layer[kind][:, neuron])

    later = np.array(order) >= LARGEST
    for kind in exact:
        a, b = np.array(estimated[kind]), np.array(exact[kind])
        print(
            f"{kind}: Spearman {spearman(a, b):.4f} over {a.size} pairs "
            f"of {len(a)} neurons; without the {LARGEST} of the lowest ranks of each layer "
            f"{spearman(a[later], b[later]):.4f} ({later.sum()}); "
            f"largest exact {np.abs(b).max():.3f} nats, median {np.median(np.abs(b)):.2g}",
            flush=True,
        )
    np.savez(
        Path(run_folder).parent / f"first_order_{how}.npz",
        order=order,
        **{f"estimated_{kind}": np.array(values) for kind, values in estimated.items()},
        **{f"exact_{kind}": np.array(values) for kind, values in exact.items()},
    )


if __name__ == "__main__":
    main()
