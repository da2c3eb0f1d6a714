"""Mistakes in an upload to a hub, found before an encoder is read."""

from __future__ import annotations

from bad_inputs.row import BadInput, Workspace

EXPORT = "export {folder}/run --out {folder}/out"


def no_token(workspace: Workspace) -> None:
    """Takes away every token of a hub."""
    workspace.patch.delenv("HF_TOKEN", raising=False)
    workspace.patch.setattr("huggingface_hub.get_token", lambda: None)


def token(workspace: Workspace) -> None:
    """Gives a token, to a process that may not use a network."""
    workspace.patch.setenv("HF_TOKEN", "hf_mine")


ROWS = [
    BadInput(
        "a repository with two slashes",
        "hub",
        f"{EXPORT} --push-to-hub birds/of/prey",
        ("'birds/of/prey' is no name of a repository", "--push-to-hub", "user/name"),
        token,
    ),
    BadInput(
        "an upload without a token",
        "hub",
        f"{EXPORT} --push-to-hub user/birds",
        ("there is no token", "--push-to-hub", "hf auth login", "HF_TOKEN"),
        no_token,
    ),
    BadInput(
        "an upload where the hub is switched off",
        "hub",
        f"{EXPORT} --push-to-hub user/birds",
        ("the hub is switched off here", "unset HF_HUB_OFFLINE"),
        token,
    ),
    BadInput(
        "a private repository without its name",
        "hub",
        f"{EXPORT} --private",
        ("--private without --push-to-hub", "name the repository"),
    ),
]
