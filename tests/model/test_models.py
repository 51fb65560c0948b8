"""Families, precision and device policy, and what the package asks of transformers in every version."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from conceptvec import Config, RequestError, RunError, load_model
from conceptvec.model import network as models
from conceptvec.model.checkpoint import FAMILIES
from conceptvec.model.memory import Batch
from conceptvec.model.network import Model, choose_device, choose_dtype
from conceptvec.validation.engine import Engine
from tests.conftest import make_hf, make_tokenizer, wrap
from tests.validation.test_damage import PROMPTS, brute

KNOWN = [f for f in FAMILIES if f in transformers.models.auto.configuration_auto.CONFIG_MAPPING]


@pytest.mark.parametrize(
    "family",
    [f for f in FAMILIES if f in transformers.models.auto.configuration_auto.CONFIG_MAPPING],
)
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    """A family's own checkpoint gives the model that was saved: same logits, same fingerprint, dimensions as built."""
    hf = make_hf(family)
    hf.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model, before = load_model(Config(model=str(tmp_path), device="cpu")), wrap(hf, family)
    assert (model.n_layers, model.hidden_size, model.intermediate_size) == (4, 32, 24)
    assert model.facts()["family"] == FAMILIES[family].name
    # Of some families AutoTokenizer always builds its own kind, which does not read the test's word-level vocabulary.
    model.tokenizer = before.tokenizer
    assert model.fingerprint == before.fingerprint
    clean, _ = Engine(model, PROMPTS, 3).clean(range(len(PROMPTS)))
    assert np.abs(clean - [brute(before, p) for p in PROMPTS]).max() < 1e-5


def test_float16_checkpoints_load_in_another_precision(tmp_path: Path) -> None:
    make_hf().half().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("dtype", "float16") == "float16"
    for name in ("float32", "bfloat16"):
        model = load_model(Config(model=str(tmp_path), device="cpu", dtype=name))
        assert {p.dtype for p in model.hf.parameters()} == {getattr(torch, name)}
    assert load_model(Config(model=str(tmp_path), device="cpu")).dtype == torch.float32


def test_precision_policy(monkeypatch, tmp_path, caplog) -> None:
    cuda, cpu, mps = (torch.device(d) for d in ("cuda", "cpu", "mps"))
    for capability, dtype, why in [((7, 5), torch.float32, "only emulates"), ((8, 0), torch.bfloat16, "natively"),
                                   ((9, 0), torch.bfloat16, "natively")]:  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        found, reason = choose_dtype("auto", cuda)
        assert found == dtype and why in reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose_dtype("bfloat16", cuda) == (
        torch.bfloat16,
        "asked for, though this GPU only emulates bfloat16",
    )
    assert choose_dtype("auto", cpu)[0] == choose_dtype("auto", mps)[0] == torch.float32
    with caplog.at_level(logging.INFO, "conceptvec"):
        load_model(Config(device="cpu"))
    assert "demo on cpu in float32: exact on a CPU" in caplog.text


def test_device_policy(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    with pytest.raises(RequestError, match="cuda is not available here"):
        choose_device("cuda")
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert str(choose_device("auto")) == "cuda" and chosen == [1]


def test_fingerprint_names_what_decides_the_results(tiny) -> None:
    same = wrap(make_hf())
    assert same.fingerprint == tiny.fingerprint
    other = make_hf()
    with torch.no_grad():
        other.model.layers[3].mlp.down_proj.weight[0, 0] += 1e-3
    assert wrap(other).fingerprint != tiny.fingerprint
    softcapped = make_hf()
    softcapped.config.final_logit_softcapping = 30.0
    assert wrap(softcapped).fingerprint != tiny.fingerprint
    tokens = wrap(make_hf())
    tokens.tokenizer.add_tokens(["new"])
    assert tokens.fingerprint != tiny.fingerprint


def failing_at(limit: int, error: Exception):
    def compute(rows: slice) -> list[int]:
        if rows.stop - rows.start > limit:
            raise error
        return list(range(rows.start, rows.stop))

    return compute


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError(),
     RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
     RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_batches_halve(error: Exception, caplog) -> None:
    batch = Batch(50, "value vectors")
    assert sum(batch.map(103, failing_at(7, error)), []) == list(range(103))
    assert (
        batch.size == 6 and "going on with 25 instead of 50 value vectors at a time" in caplog.text
    )
    with pytest.raises(RunError, match="out of memory with one of the value vectors at a time"):
        batch.map(5, failing_at(0, error))


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        Batch(5).map(9, failing_at(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


def test_stage_1_and_3_go_on_with_half_a_batch(tiny, monkeypatch, caplog) -> None:
    """Memory that runs out in the middle of the real stages changes no result."""
    from conceptvec.extraction import projection
    from conceptvec.extraction.stage import make_projector, project_layer
    from conceptvec.validation.damage import damages

    def once(function, calls: int):
        left = [calls]

        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function(*args, **kwargs)

        return wrapped

    config = Config(device="cpu", top_k=10, batch_size=16)
    projector, _, _ = make_projector(tiny, 10)
    whole = project_layer(tiny, projector, 1, config)
    monkeypatch.setattr("conceptvec.extraction.projection._product", once(projection._product, 1))
    halved = project_layer(tiny, projector, 1, config)
    for name in ("neurons", "top_ids", "top_values", "bottom_ids", "bottom_values", "norms"):
        assert np.array_equal(getattr(whole, name), getattr(halved, name))

    def measured() -> np.ndarray:
        engine = Engine(tiny, PROMPTS * 2, 4)
        rows = damages(tiny, 1, 3, "noise", 0.0, 3, 2.0, None, 0)
        return engine.measure(engine.state(1, [3]), rows, range(12))[0]

    expected = measured()
    decoder = type(tiny.decoder)
    monkeypatch.setattr(
        decoder, "forward", once(decoder.forward, 2)
    )  # in the middle of Engine.state
    monkeypatch.setattr(Engine, "_answers", once(Engine._answers, 2))
    assert np.abs(measured() - expected).max() < 1e-5
    assert caplog.text.count("out of memory: going on with") == 3


def test_logits_of_a_bfloat16_model_are_not_rounded(tiny) -> None:
    """Rounded to bfloat16, logits around 20 would move by up to 0.06."""
    states = torch.randn(7, tiny.hidden_size)
    half = copy.deepcopy(tiny.hf).bfloat16()
    model = Model(half, tiny.tokenizer, "tiny", None, tiny.family, tiny.device, torch.bfloat16)
    normed = model.norm(states.bfloat16())
    exact = normed.double() @ model.unembedding.double().T
    found = model.logits(states.bfloat16())
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    assert ((normed @ model.unembedding.T).double() - exact).abs().max() > 1e-2


def test_no_float64_reaches_mps() -> None:
    """MPS has no float64, and casts on the device even where a copy to the CPU is asked for: first move, then widen."""
    for path in Path(models.__file__).parents[1].rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.partition("#")[0]
            for before in re.findall(r"(\S*)\.double\(\)", code):
                on_cpu = re.search(r"(\.cpu\(\)|exact\)|model\.dtype\)|\b(x|rows|found))$", before)
                assert on_cpu, f"{path.name}:{number}: {line}"
            assert not re.search(r"\.to\([^)]*float64", code), f"{path.name}:{number}: {line}"
