"""What the weights alone say: value vectors, norms, unembedding, without a forward pass.

The projection takes ``down_proj`` of one layer at a time, the norms and the unembedding. `Weights`
has them from any `TensorSource`: `load_weights` streams a checkpoint's files, which needs the
memory of the unembedding in the precision of the file and of one layer's matrix; `network.Model`
adds the network that is loaded. Dimensions are always read from the tensors and the configuration
that comes with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError
from conceptvec.files import digest
from conceptvec.model.ambient import set_aside
from conceptvec.model.checkpoint import Checkpoint, Family, fetch, find
from conceptvec.model.device import choose_device, choose_dtype
from conceptvec.model.fingerprint import fingerprint, probe
from conceptvec.model.folder import GGUF, tell_of_adapter
from conceptvec.model.quantised import (
    GgufTensors,
    gguf_settings,
    gguf_tokenizer,
    quantisation,
)
from conceptvec.model.tensors import EMBEDDING, HEAD, StoredTensors, down_proj
from conceptvec.records import Pole

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class TensorSource(Protocol):
    """Where a decoder's tensors come from: the files of a checkpoint, or a network in memory."""

    @property
    def config(self) -> Any:
        """Transformers' configuration of the text decoder."""
        ...

    def names(self) -> list[str]:
        """The decoder's tensors, and ``lm_head.weight`` where the unembedding is one of its own."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """One tensor, to be read and never written."""
        ...


@dataclass(eq=False)
class Weights:
    """A decoder's weights with the names that interpretability work needs. Nothing is ever written.

    Attributes:
        source: where the tensors come from.
        tokenizer: the tokenizer of transformers.
        name: the model as the user wrote it.
        revision: the resolved commit of the Hub, if it comes from there.
        family: how the model writes its MLP output into the residual stream.
        device: where tensors are handed out.
        dtype: the precision of the model.
        why: why this precision.
    """

    source: TensorSource
    tokenizer: Any
    name: str
    revision: str | None
    family: Family
    device: torch.device
    dtype: torch.dtype
    why: str = ""

    def __post_init__(self) -> None:
        """Read the unembedding (V, H) and the dimensions."""
        self._readout = HEAD if HEAD in self.source.names() else EMBEDDING
        self.unembedding = self.tensor(self._readout)
        self.n_layers: int = self.source.config.num_hidden_layers
        self.vocab_size, self.hidden_size = self.unembedding.shape
        self.intermediate_size = self.value_vectors(0).shape[0]
        self.bos_id: int | None = self.tokenizer.bos_token_id

    def tensor(self, name: str) -> torch.Tensor:
        """A weight by its name in the decoder, on the device."""
        return self.source.read(name).to(self.device)

    def value_vectors(self, layer: int) -> torch.Tensor:
        """The columns of ``down_proj`` as rows: (intermediate_size, hidden_size), a view."""
        return self.tensor(down_proj(layer)).T

    def norm_weight(self, name: str) -> torch.Tensor:
        """A norm's weight, such as ``norm`` or ``layers.0.post_feedforward_layernorm``."""
        return self.tensor(f"{name}.weight")

    def fold_scale(self, layer: int, fold: str) -> torch.Tensor:
        """The factor folded into the readout: float32 (hidden_size,)."""
        offset = self.family.norm_offset
        scale = torch.ones(self.hidden_size, dtype=torch.float32, device=self.device)
        if fold in ("both", "final"):
            scale = scale * (offset + self.norm_weight("norm").float())
        return scale * self.post_norm_scale(layer) if fold == "both" else scale

    def post_norm_scale(self, layer: int) -> torch.Tensor:
        """The weights by which the norm after the MLP multiplies what it writes: float32 (H,)."""
        if self.family.post_norm is None:
            return torch.ones(self.hidden_size, dtype=torch.float32, device=self.device)
        weight = self.norm_weight(f"layers.{layer}.{self.family.post_norm}")
        return self.family.norm_offset + weight.float()

    def check_place(self, pole: Pole) -> None:
        """Check that the model has the neuron.

        Raises:
            RequestError: it has not.
        """
        if pole.layer >= self.n_layers or pole.neuron >= self.intermediate_size:
            raise RequestError(
                f"{pole.id}: no such vector; {self.name} has {self.n_layers} layers of "
                f"{self.intermediate_size} neurons, counted from 0"
            )

    def residual_direction(self, pole: Pole) -> torch.Tensor:
        """Where a pole moves the residual stream, as a unit vector: float32 (H,).

        That is its value vector times the weights of the norm after the MLP. The norm's division
        by the size of the whole output depends on the text and is left out.

        Raises:
            RequestError: the model has no such neuron.
        """
        self.check_place(pole)
        vector = self.value_vectors(pole.layer)[pole.neuron].float()
        written = pole.direction * vector * self.post_norm_scale(pole.layer)
        return written / torch.linalg.vector_norm(written).clamp(min=1e-30)

    def readout_directions(self, layer: int, fold: str, neurons: Any = slice(None)) -> torch.Tensor:
        """The value vectors of a layer, or of some of its neurons, folded: float32 (n, H)."""
        return self.folded(self.value_vectors(layer)[neurons], layer, fold)

    def folded(self, vectors: torch.Tensor, layer: int, fold: str) -> torch.Tensor:
        """What value vectors (n, H) of a layer are in the readout: float32, of the same shape.

        Raises:
            RunError: the weights hold NaN or infinity.
        """
        directions = (vectors.float() * self.fold_scale(layer, fold)).contiguous()
        if not torch.isfinite(directions).all():
            raise RunError(
                f"NaN or infinity in down_proj or a norm of layer {layer}: the weights of "
                f"{self.name} are broken; fetch its files again, or run the other layers with "
                "--layers"
            )
        return directions

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides a result: the same, streamed or loaded."""
        vocabulary = self.tokenizer.get_vocab()
        pieces = self.tokenizer(probe(vocabulary), verbose=False)["input_ids"]
        return fingerprint(self.source.config, vocabulary, pieces, self.dtype, self._tensors())

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights by name, one at a time, and the unembedding never in memory twice."""
        for name in sorted(self.source.names()):
            held = name == self._readout
            yield name, self.unembedding if held else self.source.read(name)

    @property
    def chat_template(self) -> str | None:
        """The template of a chat, a program in Jinja; of several the default one."""
        template = getattr(self.tokenizer, "chat_template", None)
        return template.get("default") if isinstance(template, dict) else template

    def facts(self) -> dict[str, Any]:
        """The `model` part of the results."""
        template = self.chat_template
        return {
            "id": self.name,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "chat_template": _digest_of_text(template) if template else None,
            "family": self.family.name,
            "layers": self.n_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "why_dtype": self.why,
            "device": str(self.device),
        }


def _digest_of_text(text: Any) -> str:
    """SHA-256 of a text, which may hold half characters where JSON escapes were wrong."""
    return digest(str(text).encode("utf-8", "surrogatepass"))


class Opened(NamedTuple):
    """A checkpoint whose tensors are still to be read: the attributes of `Weights`, in order."""

    source: StoredTensors
    tokenizer: Any
    name: str
    revision: str | None
    family: Family
    device: torch.device
    dtype: torch.dtype
    why: str


@set_aside
def load_weights(config: Config, checkpoint: Checkpoint | None = None) -> Weights:
    """Open `config.model` for streaming; a model of the Hub is downloaded where it is missing.

    Args:
        config: model, revision, device, dtype.
        checkpoint: the model's files, where `checkpoint.find` has looked at them already.

    Raises:
        RequestError: no such model, no access to it, files that cannot be used, or a family that
            is not supported.
        RunError: the download failed.
    """
    return Weights(*open_checkpoint(config, checkpoint))


def open_checkpoint(config: Config, checkpoint: Checkpoint | None = None) -> Opened:
    """Find the files, choose device and precision, and read all but the tensors.

    Raises:
        RequestError: as `load_weights`.
        RunError: the download failed.
    """
    import transformers

    checkpoint = checkpoint or find(config)
    device = choose_device(config.device)
    dtype, why = choose_dtype(config.dtype, device)
    folder = fetch(checkpoint)
    tell_of_adapter(folder)
    is_gguf = folder.suffix == GGUF
    try:
        if is_gguf:
            settings, tokenizer = gguf_settings(folder), gguf_tokenizer(folder)
        else:
            settings = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:  # they break in as many ways as there are files
        raise unloadable(folder, error) from error
    revision, family = checkpoint.revision, checkpoint.family
    if is_gguf:
        source = GgufTensors(folder, settings, dtype)
        why = f"{why}; dequantised from {quantisation(folder)}"
    else:
        source = StoredTensors(folder, settings, dtype)
    return Opened(source, tokenizer, config.model, revision, family, device, dtype, why)


def unloadable(folder: Path, error: Exception) -> RequestError:
    """What to say of a model folder that transformers cannot read."""
    text = " ".join(str(error).split())[:300]
    advice = "its files do not fit together, so fetch them again"
    if isinstance(error, ImportError):
        advice = "install what it names"
    return RequestError(
        f"--model: {folder} could not be loaded ({type(error).__name__}: {text}); {advice}"
    )
