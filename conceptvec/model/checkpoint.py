"""A model's files: where they are, and whether they can be used, before anything is loaded.

The demo lies in the package; a folder is used as it is, and so is a GGUF file; a model of the Hub
is fetched into the Hub's cache, from then on a folder like any other.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.model import hub
from conceptvec.model.folder import FAMILIES as FAMILIES
from conceptvec.model.folder import ITEMSIZE as ITEMSIZE
from conceptvec.model.folder import Checkpoint as Checkpoint
from conceptvec.model.folder import Family as Family
from conceptvec.model.folder import checked_folder, gguf_file

HUB_NAME = r"[\w.-]+(/[\w.-]+)?"


def find(config: Config) -> Checkpoint:
    """Find and check the files of `config.model`; of a model on the Hub only its description.

    Raises:
        RequestError: there is no such model, no access to it, or its files cannot be used.
    """
    name = config.model
    if name == "demo":
        folder = Path(str(resources.files("conceptvec") / "data" / "demo"))
        return checked_folder(name, "package", folder, None)
    path = Path(name).expanduser()
    if (file := gguf_file(path)) is not None:
        from conceptvec.model.quantised import checked_gguf

        return checked_gguf(name, file)
    if path.is_dir():
        return checked_folder(name, "folder", path, None)
    is_path = path.exists() or name.startswith((".", "/", "~"))
    if is_path or not re.fullmatch(HUB_NAME, name):
        raise RequestError(
            f"--model: no folder at {name!r}; give demo, a Hugging Face id, a model folder or a "
            "GGUF file"
        )
    return hub.describe(name, config.revision)


def fetch(checkpoint: Checkpoint) -> Path:
    """The folder of the model, after downloading what is still missing.

    Raises:
        RequestError: access was refused.
        RunError: the download failed; what has arrived is kept.
    """
    if checkpoint.folder is None or checkpoint.download:
        return hub.download(checkpoint)
    return checkpoint.folder
