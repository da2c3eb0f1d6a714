"""Uploads the folder of an exported encoder to a Hugging Face hub, whose address is in ``HF_ENDPOINT``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_dist.errors import ConfigError, OutputError
from saga_dist.export.card import CARD_NAME
from saga_dist.utils.file_manifest import MANIFEST_NAME, check_manifest, read_json_object

OPTION = "--push-to-hub"
_LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def check_hub(repo: str) -> None:
    """Checks the name of a repository and that the hub knows the user, before the seconds that an export takes.

    Args:
        repo: name of the repository, ``user/name``.

    Raises:
        ConfigError: the name is none of a repository, there is no token, or the hub refuses it.
        OutputError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository", where=OPTION, expected="user/name") from error
    if get_token() is None:
        raise ConfigError("there is no token of a Hugging Face hub", where=OPTION, fix=_LOG_IN)
    with _hub_errors(repo):
        HfApi().whoami()


def push_to_hub(folder: Path, repo: str, *, private: bool = False) -> str:
    """Uploads an exported encoder in one commit and returns the commit's address; the repository is made if needed.

    The files are those that the manifest lists, the manifest itself and the model card; nothing else in the folder is
    sent.

    Args:
        folder: folder that ``export_encoder`` wrote.
        repo: name of the repository, ``user/name``.
        private: True to make a new repository private; an existing one stays as it is.

    Raises:
        CheckpointError: a file of the folder is missing or altered; nothing is sent then.
        ConfigError: the hub refuses the token or the name.
        OutputError: the hub cannot be reached, or does not take the files.
    """
    from huggingface_hub import HfApi

    check_manifest(folder, required=(), writer="a folder that saga-dist export wrote")
    listed = read_json_object(folder / MANIFEST_NAME, expected="a manifest")["sha256"]
    names = [*listed, MANIFEST_NAME, *([CARD_NAME] if (folder / CARD_NAME).is_file() else [])]
    with _hub_errors(repo):
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=names, commit_message="Encoder exported by saga_dist"
        )
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Converts errors of huggingface_hub within the context to one line each."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise OutputError("the hub is switched off here", where=OPTION, fix="unset HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, str(error.server_message or error.response.reason_phrase)
        if status in (401, 403):
            raise ConfigError(f"the hub refuses the token ({reason})", where=repo, fix=_LOG_IN) from error
        raise OutputError(f"the hub answers {status} ({reason})", where=repo, fix="try again later") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(
            f"the hub cannot be used ({reason})", where=repo, fix="check the network, then try again"
        ) from error
