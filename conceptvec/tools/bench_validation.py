"""Key `validation` of ``conceptvec bench``: the damage engine against the naive loop, on random weights.

The naive loop does what published validations do: edit the column, run the whole model with all logits on all prompts,
restore the column; one damage at a time. Both sides measure the same vectors, prompts, draws and precision, with
prompts of like length batched together, and their results are compared before a time is reported.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.config import Config
from conceptvec.errors import RunError
from conceptvec.model.device import now
from conceptvec.validation.damage import Damage
from conceptvec.validation.engine import Engine
from conceptvec.validation.measure import Experiment, PromptTable

if TYPE_CHECKING:
    from conceptvec.model.network import Model

GEMMA_1B = {
    "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "vocab_size": 262144,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
}  # fmt: skip
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}  # nats between both sides
Answer = tuple[list[int], int]


def random_model(device: str, dtype: torch.dtype, shape: dict[str, int], seed: int = 0) -> Model:
    """A Gemma 3 of a shape with random weights and no tokenizer."""
    import transformers

    from conceptvec.model.network import FAMILIES, Model

    settings: dict[str, Any] = GEMMA_1B | shape
    config = transformers.Gemma3TextConfig(
        **settings, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=settings["head_dim"],
        layer_types=[f"{'sliding' if (i + 1) % 6 else 'full'}_attention" for i in range(settings["num_hidden_layers"])],
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(device):
        hf: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    hf = hf.to(dtype).eval().requires_grad_(False)
    tokenizer = SimpleNamespace(bos_token_id=2)
    return Model(
        hf, tokenizer, "random", None, FAMILIES["gemma3_text"], torch.device(device), dtype
    )


def random_prompts(n: int, vocabulary: int, seed: int = 0) -> list[Answer]:
    """Token ids as long as the built-in prompts are (8 to 16 tokens), each with an answer of one token."""
    rng = np.random.default_rng([seed, 31])
    return [
        ([2, *rng.integers(10, vocabulary, size - 1).tolist()], int(size) - 1)
        for size in rng.integers(8, 17, n)
    ]


@torch.inference_mode()
def naive(
    model: Model, prompts: list[Answer], layer: int, damaged: list[Damage], batch_size: int
) -> np.ndarray:
    """Log-probabilities of the answers by real edits and whole forward passes: (D, P)."""
    weight = model.layers[layer].mlp.down_proj.weight
    out = np.zeros((len(damaged), len(prompts)))
    order = np.argsort([len(ids) for ids, _ in prompts], kind="stable")
    for row, d in enumerate(damaged):
        keep = weight[:, d.neuron].clone()
        weight[:, d.neuron] += (-keep.float() if d.scale < 0 else d.direction).to(weight.dtype)
        try:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                width = max(len(prompts[p][0]) for p in batch)
                ids = torch.tensor(
                    [prompts[p][0] + [0] * (width - len(prompts[p][0])) for p in batch]
                )
                mask = torch.tensor(
                    [[1] * len(prompts[p][0]) + [0] * (width - len(prompts[p][0])) for p in batch]
                )
                ids, mask = ids.to(model.device), mask.to(model.device)
                logits = model.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits
                for i, p in enumerate(batch):
                    last = len(prompts[p][0]) - 1
                    out[row, p] = float(logits[i, last - 1].float().log_softmax(0)[ids[i, last]])
        finally:
            weight[:, d.neuron] = keep
    return out


def bench_validation(
    device: str = "cpu",
    dtype: str = "float32",
    shape: dict[str, int] | None = None,
    layers: int = 5,
    per_layer: int = 2,
    prompts: int = 24,
    draws: int = 5,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Seconds per vector of the engine and of the naive loop.

    Args:
        device: cpu, cuda, cuda:N or mps.
        dtype: float32 or bfloat16, for both sides.
        shape: changes of the real Gemma 3 1B shape.
        layers: damaged layers, evenly from the first to the last.
        per_layer: candidates in each.
        prompts: prompts per candidate: a third are the concept's, two thirds unrelated.
        draws: noise draws; zero and mean come on top.
        batch_size: rows per forward pass, for both sides.
        seed: of weights, prompts and neurons.

    Returns:
        ``seconds_naive``, ``seconds_ours`` and ``speedup`` with every draw computed; ``seconds_adaptive`` and
        ``speedup_adaptive`` where nine in ten candidates are hopeless and stop early; all per vector. The naive loop
        is timed on one vector, since its time does not depend on the layer.

    Raises:
        RunError: the two sides disagree.
    """
    model = random_model(device, getattr(torch, dtype), shape or {}, seed)
    made = random_prompts(prompts, model.vocab_size, seed)
    config = Config(device=device, batch_size=batch_size, draws=draws, seed=seed)
    means = {n: np.zeros(model.intermediate_size) for n in range(model.n_layers)}
    rng = np.random.default_rng([seed, 32])
    places = sorted({round(x) for x in np.linspace(0, model.n_layers - 1, layers)})
    chosen = [
        (n, sorted(map(int, rng.choice(model.intermediate_size, per_layer, replace=False))))
        for n in places
    ]
    vectors = per_layer * len(places)

    def experiment() -> Experiment:
        engine, third = Engine(model, made, batch_size), max(1, prompts // 3)
        groups = {
            "concept": list(range(third)),
            "other": list(range(third, prompts)),
            "neutral": [],
        }
        known, nothing = np.ones(prompts, bool), np.zeros(prompts)
        return Experiment(
            model, config, PromptTable(engine, groups, known, nothing, nothing, seed), means
        )

    def ours(hopeless: bool) -> tuple[float, np.ndarray]:
        """Seconds per vector, clean passes included, and the drops of the first one (kinds, P)."""
        start, mine, drops = now(model.device), experiment(), []
        for layer, neurons in chosen:
            entries = [
                {"neuron": j, "concept": "concept", "firing_share": float(not hopeless)}
                for j in neurons
            ]
            drops.append(
                mine.candidate_unit(layer, tuple(neurons), entries, stop=hopeless)["drop"][0]
            )
        return (now(model.device) - start) / vectors, drops[0]

    warm = experiment()
    layer, neuron = chosen[0][0], chosen[0][1][0]
    damaged = [d for kind in config.damage for d in warm.damages(layer, neuron, kind)]
    naive(model, made, layer, [], batch_size)
    full, found = ours(hopeless=False)
    look, _ = ours(hopeless=True)
    start = now(model.device)
    slow = naive(model, made, layer, damaged, batch_size)
    seconds = now(model.device) - start
    clean = naive(
        model,
        made,
        layer,
        [Damage(neuron, 1.0, 0.0, torch.zeros_like(damaged[0].direction))],
        batch_size,
    )
    expected = np.stack([(clean - slow[:draws]).mean(0), *(clean - slow[draws:])])
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE[model.dtype]:
        raise RunError(
            f"bench: the engine and the naive loop differ by {difference:.3g} nats; run conceptvec selfcheck"
        )
    adaptive = 0.1 * full + 0.9 * look
    return {
        "seconds_naive": seconds, "seconds_ours": full, "speedup": seconds / full,
        "seconds_adaptive": adaptive, "speedup_adaptive": seconds / adaptive, "hopeless_share": 0.9,
        "vectors": vectors, "layers": places, "prompts": prompts, "draws": draws, "damages": len(damaged),
        "batch_size": batch_size, "dtype": dtype, "device": device, "threads": torch.get_num_threads(),
        "shape": GEMMA_1B | (shape or {}), "largest_difference": difference,
    }  # fmt: skip
