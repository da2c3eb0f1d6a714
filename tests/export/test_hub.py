"""The upload of an exported encoder, to a hub on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from export.hub_double import COMMIT, HubDouble, hub_double

from saga_dist.errors import CheckpointError, ConfigError, OutputError
from saga_dist.export.hub import check_hub, push_to_hub
from saga_dist.utils.file_manifest import write_manifest


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    with hub_double(monkeypatch) as double:
        yield double


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder as an export leaves it, with a file that is none of the encoder's beside it."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "preprocessor_config.json": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_manifest(folder, files)
    (folder / "README.md").write_text("---\ntags: [saga]\n---\n# Encoder\n")
    (folder / "notes.txt").write_text("not for others")
    return folder


@pytest.mark.parametrize("private", [False, True])
def test_files_of_the_manifest_are_one_commit(hub: HubDouble, exported: Path, private: bool) -> None:
    check_hub("user/birds")
    assert push_to_hub(exported, "user/birds", private=private).endswith(f"/commit/{COMMIT}")
    sent = {path.name: path.read_bytes() for path in exported.iterdir() if path.name != "notes.txt"}
    assert hub.files == sent
    assert hub.repositories["user/birds"].get("visibility") == ("private" if private else None)
    assert sum("/commit/" in call for call in hub.calls) == 1


def test_an_altered_folder_is_not_sent(hub: HubDouble, exported: Path) -> None:
    (exported / "model.safetensors").write_bytes(b"\0" * 256 * 40)
    with pytest.raises(CheckpointError, match="was altered"):
        push_to_hub(exported, "user/birds")
    assert hub.calls == []


def test_what_is_wrong_is_known_before_the_export(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'birds/of/prey' is no name of a repository.*user/name"):
        check_hub("birds/of/prey")
    assert hub.calls == []
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ConfigError, match="the hub refuses the token.*hf auth login"):
        check_hub("user/birds")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token.*HF_TOKEN"):
        check_hub("user/birds")


@pytest.mark.parametrize(
    ("call", "status", "error", "says"),
    [
        ("/repos/create", 403, ConfigError, "refuses the token .*no rights in this organisation"),
        ("/commit/", 413, OutputError, "the hub answers 413 .*no rights"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: HubDouble, exported: Path, call: str, status: int, error: type[Exception], says: str
) -> None:
    hub.fails[call] = (status, "no rights in this organisation")
    with pytest.raises(error, match=says) as caught:
        push_to_hub(exported, "user/birds")
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_line(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(OutputError, match="the hub cannot be used") as caught:
            check_hub("user/birds")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="switched off here.*unset HF_HUB_OFFLINE"):
        check_hub("user/birds")
