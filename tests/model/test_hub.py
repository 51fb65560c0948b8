"""The Hub's refusals: its own reason, and what to do about that one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conceptvec import Config, RequestError
from conceptvec.model import hub
from conceptvec.model.checkpoint import find


class Answer(Exception):
    """An error of the Hub's client, as far as it is looked at."""

    def __init__(self, status: int, header: str = "", body: Any = None) -> None:
        super().__init__(f"{status} Client Error")
        headers = {"X-Error-Message": header} if header else {}
        self.response = SimpleNamespace(status_code=status, headers=headers, json=lambda: body)


def refusal(error: Exception) -> str:
    return str(hub._refused("org/name", error))


@pytest.mark.parametrize(
    "error",
    [
        Answer(401, "Invalid credentials in Authorization header"),
        Answer(401, body={"error": 'User Access Token "work" is expired'}),
        Answer(401, body={"error": "Invalid username or password. token rejected"}),
    ],
)
def test_an_invalid_token_is_told_apart_from_a_missing_model(error: Answer) -> None:
    said = refusal(error)
    assert "is invalid or expired" in said
    assert "has no model" not in said


def test_a_token_without_the_gated_box_hears_the_server_s_sentence() -> None:
    said = refusal(Answer(403, "Please enable access to public gated repositories"))
    assert "the Hub says: Please enable access to public gated repositories" in said
    assert "settings/tokens" in said


def test_a_body_that_is_no_json_is_no_reason() -> None:
    error = Answer(403)
    error.response.json = lambda: [][0]
    assert "the Hub says" not in refusal(error)


def test_a_missing_model_is_still_one() -> None:
    assert "the Hub has no model" in refusal(Answer(404))
    assert "the Hub has no model" in refusal(Answer(401, "Repository not found"))


@pytest.mark.parametrize(("status", "goes_on"), [(404, True), (501, True), (403, False)])
def test_a_mirror_without_auth_check(status: int, goes_on: bool, monkeypatch) -> None:
    import huggingface_hub

    def check(*_) -> None:
        raise Answer(status, "no such route")

    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", check)
    if goes_on:
        hub._check_access("org/name")
    else:
        with pytest.raises(Answer):
            hub._check_access("org/name")


def test_an_adapter_on_the_hub_is_told_before_anything_is_fetched(monkeypatch) -> None:
    import huggingface_hub

    files = ["adapter_config.json", "adapter_model.safetensors"]
    siblings = [SimpleNamespace(rfilename=name, size=1) for name in files]
    info = SimpleNamespace(siblings=siblings, gated=False, sha="a" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(RequestError, match="org/name: it is an adapter.*merge_and_unload"):
        find(Config(model="org/name"))
