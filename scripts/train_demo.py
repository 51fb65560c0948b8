"""Train the small demo model of conceptvec: a real Gemma 3 with narrow MLPs, from random weights by gradient descent.

One seeded run on two cores takes a few minutes and writes the tokenizer, the model, ``training.json`` and the passages
for the activation statistics. Nothing is planted: the text (`demo_corpus`) is the only source of structure, plus weight
decay and a sparsity penalty on the MLP activations (`sparsity`). At the end a report checks what the demo is for: that
single MLP neurons promote the words of one concept and that removing them hurts this concept and little else.

    python scripts/train_demo.py                 # writes conceptvec/data/demo and conceptvec/data/corpus.txt
    python scripts/train_demo.py --report-only   # the report for the model that is there
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from demo_corpus import CLUES, DATA, NEUTRAL, WORDS, Generator, passages
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
UNUSED = [f"<unused{i}>" for i in range(20)]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> None:
    """Train a BPE tokenizer in Gemma's conventions (▁ for a space, byte fallback, <bos> in front) and write it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁?[^\w▁]|▁"), "isolated")
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL + UNUSED + BYTES, show_progress=False,
            initial_alphabet=[chr(c) for c in range(33, 127)] + ["▁"],
        ),
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", SPECIAL.index("<bos>"))],
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [
        t for t in spec["added_tokens"] if t["content"] not in BYTES
    ]  # as in Gemma: plain entries
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>",
        "unk_token": "<unk>", "mask_token": "<mask>", "model_max_length": 512, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def new_model(vocab_size: int, args: argparse.Namespace) -> Gemma3ForCausalLM:
    """A Gemma 3 with every feature of the family: five sliding layers and a full one, grouped queries, all norms."""
    config = Gemma3TextConfig(
        vocab_size=vocab_size, hidden_size=args.hidden, intermediate_size=args.mlp, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, num_key_value_heads=args.heads // 2, head_dim=args.head_dim,
        query_pre_attn_scalar=args.head_dim, sliding_window=16, sliding_window_pattern=args.layers, max_position_embeddings=512,
        initializer_range=0.02, tie_word_embeddings=True, attention_dropout=0.0,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return Gemma3ForCausalLM._from_config(config, attn_implementation="eager")


def batches(ids: list[list[int]], size: int, rng: random.Random) -> list[torch.Tensor]:
    """Shuffled batches of `size` passages of similar length, padded on the right."""
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), rng.random()))
    groups = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    rng.shuffle(groups)
    return [pad([ids[i] for i in g]) for g in groups]


def pad(rows: list[list[int]]) -> torch.Tensor:
    """Right-padded ids: (rows, longest)."""
    width = max(map(len, rows))
    return torch.tensor([r + [0] * (width - len(r)) for r in rows])


def loss_of(model: Gemma3ForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss; padding does not count."""
    hidden = model.model(input_ids=batch, attention_mask=(batch != 0).long()).last_hidden_state[
        :, :-1
    ]
    real = batch[:, 1:] != 0
    return F.cross_entropy(model.lm_head(hidden[real]), batch[:, 1:][real])


class Activations:
    """Hooks on every ``down_proj``: keep its input (the neurons' activations) and, if asked, set one neuron to zero."""

    def __init__(self, model: Gemma3ForCausalLM) -> None:
        self.kept: dict[int, torch.Tensor] = {}
        self.off: tuple[int, int] | None = None
        self.down = [layer.mlp.down_proj for layer in model.model.layers]
        for number, module in enumerate(self.down):
            module.register_forward_pre_hook(lambda m, inputs, n=number: self._hook(n, inputs[0]))

    def _hook(self, layer: int, a: torch.Tensor) -> tuple[torch.Tensor] | None:
        self.kept[layer] = a
        if self.off and self.off[0] == layer:
            a = a.clone()
            a[..., self.off[1]] = 0
            return (a,)
        return None

    def sparsity(self, real: torch.Tensor) -> torch.Tensor:
        """L1 over L2 norm of the neurons' contributions, mean over layers and real positions.

        A plain L1 penalty would be met by small activations and large value vectors, as the norm after the MLP undoes
        any scale; this ratio falls only if fewer neurons speak at a time.
        """
        total = torch.zeros(())
        for layer, a in self.kept.items():
            c = a[real] * torch.linalg.vector_norm(self.down[layer].weight, dim=0)
            total = total + (c.abs().sum(-1) / (c.square().sum(-1) + 1e-8).sqrt()).mean()
        return total / len(self.kept)


def train(model: Gemma3ForCausalLM, ids: list[list[int]], args: argparse.Namespace) -> int:
    """AdamW with warm-up and cosine decay; returns the number of steps."""
    watch = Activations(model)
    words = model.lm_head.weight
    decay = [p for p in model.parameters() if p.ndim > 1 and p is not words]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0},
              {"params": [words], "weight_decay": args.embedding_decay}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    rng, step, start = random.Random(args.seed), 0, time.time()
    while step < args.steps:
        for batch in batches(ids, args.batch, rng):
            rate = min(1.0, (step + 1) / 100) * (
                0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps))
            )
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate
            loss = loss_of(model, batch)
            total = loss + args.sparsity * watch.sparsity(batch != 0) if args.sparsity else loss
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 200 == 0:
                print(
                    f"step {step:5d} loss {loss.item():.3f} {time.time() - start:5.0f} s",
                    flush=True,
                )
            step += 1
            if step >= args.steps:
                break
    return step


@torch.no_grad()
def held_out_loss(model: Gemma3ForCausalLM, ids: list[list[int]]) -> float:
    """Mean loss over passages that were not trained on (same sources, other draws)."""
    groups = batches(ids, 64, random.Random(0))
    return sum(loss_of(model, b).item() for b in groups) / len(groups)


@torch.no_grad()
def report(folder: Path, corpus: list[str]) -> list[dict[str, Any]]:
    """Per concept: how well its prompts are answered, and the single neuron that serves it best."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    watch, prompts = Activations(model), Generator(0).prompts
    rows = [(c, tokenizer(p).input_ids, tokenizer(a, add_special_tokens=False).input_ids)
            for c in prompts for p, a in prompts[c]]  # fmt: skip
    split = [tokenizer.decode(a) for _, _, a in rows if len(a) != 1]
    if split:
        print("answers of more than one token:", split)
    concept_of = [c for c, _, _ in rows]
    ids, answers = pad([r for _, r, _ in rows]), torch.tensor([a[0] for _, _, a in rows])
    last = torch.tensor([len(r) - 1 for _, r, _ in rows])
    each = torch.arange(len(rows))

    def log_p() -> torch.Tensor:
        hidden = model.model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[
            each, last
        ]
        return model.lm_head(hidden).log_softmax(-1)[each, answers]

    base = log_p()
    at_end = {layer: a[each, last] for layer, a in watch.kept.items()}
    reach = {
        layer: torch.zeros(2, a.shape[-1]) for layer, a in watch.kept.items()
    }  # largest, most negative
    for i in range(0, len(corpus), 64):
        chunk = pad(tokenizer(corpus[i : i + 64]).input_ids)
        model.model(input_ids=chunk, attention_mask=(chunk != 0).long())
        for layer, a in watch.kept.items():
            real = a[chunk != 0]
            reach[layer] = torch.stack(
                [reach[layer][0].maximum(real.amax(0)), reach[layer][1].minimum(real.amin(0))]
            )
    drops = {}
    for layer, a in watch.kept.items():
        for j in range(a.shape[-1]):
            watch.off = (layer, j)
            drops[layer, j] = base - log_p()
    watch.off = None
    table = []
    for c in WORDS:
        mine = torch.tensor([x == c for x in concept_of])
        neutral = torch.tensor([x == NEUTRAL for x in concept_of])
        if not mine.any():
            continue
        lexicon = concept_words(c, prompts[c])
        found = []
        for (layer, j), drop in drops.items():
            own, other = drop[mine].mean().item(), drop[~mine & ~neutral].mean().item()
            none = drop[neutral].mean().item() if neutral.any() else 0.0
            a = at_end[layer][mine, j]
            sign = 1.0 if a.sum() >= 0 else -1.0
            top = reach[layer][0 if sign > 0 else 1, j].abs()
            fires = ((a * sign > 0) & (a.abs() >= 0.1 * top)).float().mean().item()
            hits = readout_hits(model, tokenizer, layer, j, sign, lexicon)
            good = (
                own >= 0.12 and other < own / 3 and none < own / 3 and hits >= 10 and fires >= 0.25
            )
            found.append(
                (
                    good,
                    own - 3 * max(other, none, 0) + 0.05 * min(hits, 10),
                    layer,
                    j,
                    own,
                    other,
                    none,
                    hits,
                    fires,
                )
            )
        good, _, layer, j, own, other, none, hits, fires = max(found)
        table.append({
            "concept": c, "median_log_p": round(base[mine].median().item(), 3), "layer": layer, "neuron": j,
            "passes": good, "drop": round(own, 3), "drop_other_concepts": round(other, 3), "drop_neutral": round(none, 3),
            "concept_words_in_top_20": hits, "fires_on": round(fires, 2), "passing_neurons": sum(f[0] for f in found),
        })  # fmt: skip
        print("  ".join(f"{k} {v}" for k, v in table[-1].items()))
    print(f"{sum(r['passes'] for r in table)} of {len(table)} concepts have a neuron; neutral median log p "
          f"{base[torch.tensor([x == NEUTRAL for x in concept_of])].median().item():.3f}")  # fmt: skip
    return table


def concept_words(concept: str, prompts: list[tuple[str, str]]) -> set[str]:
    """Lower-case English words of the concept's lexicon, and the answers of its prompts."""
    path = DATA / "lexicon" / f"{concept}.json"
    words = (
        json.loads(path.read_text(encoding="utf-8"))["words"]["en"]
        if path.is_file()
        else WORDS[concept].split()
    )
    return {w.lower() for w in words} | {a.strip().lower() for _, a in prompts}


def readout_hits(
    model: Any, tokenizer: Any, layer: int, j: int, sign: float, words: set[str]
) -> int:
    """How many of the 20 tokens that the neuron's value vector promotes most are words of the concept."""
    block = model.model.layers[layer]
    scale = (1 + model.model.norm.weight) * (1 + block.post_feedforward_layernorm.weight)
    z = sign * (model.lm_head.weight @ (scale * block.mlp.down_proj.weight[:, j]))
    z[: len(SPECIAL + UNUSED + BYTES)] = -math.inf
    tokens = tokenizer.convert_ids_to_tokens(z.topk(20).indices.tolist())
    return sum(t.replace("▁", "").lower() in words for t in tokens)


def main() -> None:
    """Train, save and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DATA / "demo")
    parser.add_argument(
        "--corpus", type=Path, default=DATA / "corpus.txt", help="where the passages go"
    )
    parser.add_argument("--report-only", action="store_true")
    for name, value in (
        ("seed", 0), ("steps", 1500), ("batch", 64), ("passages", 40_000), ("vocab", 4096), ("hidden", 96), ("mlp", 40), ("layers", 4),
        ("heads", 4), ("head-dim", 16), ("lr", 4e-3), ("weight-decay", 1.0), ("embedding-decay", 1.0), ("sparsity", 0.1), ("threads", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.report_only:
        report(args.out, args.corpus.read_text(encoding="utf-8").splitlines())
        return
    start = time.time()
    texts, unseen = passages(args.seed, args.passages), passages(args.seed + 1, 1500)
    generator = Generator(args.seed)
    # The tokenizer also sees every concept word and answer, so that each is one token.
    words = [f" {w}" for c in generator.words for w in generator.words[c]] + [
        f" {c}" for cs in CLUES.values() for c in cs
    ]
    words += [a for c in generator.prompts for _, a in generator.prompts[c] + generator.contexts[c]]
    train_tokenizer(texts + words * 20, args.vocab, args.out)
    args.corpus.write_text("\n".join(unseen) + "\n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    ids = [r + [1] for r in tokenizer(texts).input_ids]
    print(
        f"{len(texts)} passages, {sum(map(len, ids))} tokens, vocabulary {len(tokenizer)}, {time.time() - start:.0f} s"
    )
    model = new_model(len(tokenizer), args)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    steps = train(model, ids, args)
    model.eval()
    loss = held_out_loss(model, [r + [1] for r in tokenizer(unseen).input_ids])
    model.save_pretrained(args.out)
    seconds = round(time.time() - start)
    print(f"held-out loss {loss:.3f}, {seconds} s")
    table = report(args.out, unseen)
    settings = {
        k: v for k, v in vars(args).items() if not isinstance(v, Path) and k != "report_only"
    }
    facts = {
        "held_out_loss": round(loss, 4), "steps": steps, "seed": args.seed, "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()), "settings": settings,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "threads": args.threads},
        "concepts": table,
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
