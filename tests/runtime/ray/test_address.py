"""The address of a cluster: which setting it comes from, and one line with the cause when it cannot be used."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from saga_dist.errors import ConfigError
from saga_dist.runtime.ray.address import ClusterAddress, check_token, configured_address, token_source


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_setting_comes_before_the_variable_and_local_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_address("") is None
    monkeypatch.setenv("RAY_ADDRESS", " head:6379\n")
    assert configured_address("") == ClusterAddress("head:6379", "RAY_ADDRESS")
    assert configured_address("other:1") == ClusterAddress("other:1", "runtime.address")
    assert configured_address("local") is None
    assert configured_address("auto") == ClusterAddress("head:6379", "RAY_ADDRESS"), "as Ray itself has it"


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_that_answers_is_accepted(form: str, listener: int) -> None:
    ClusterAddress(form.format(listener), "RAY_ADDRESS").check()


def test_ray_missing_on_this_machine_is_named() -> None:
    error = ConnectionError("Could not find any running Ray instance. Please specify the one to connect to")
    assert str(ClusterAddress("auto", "RAY_ADDRESS").refused(error)) == (
        "RAY_ADDRESS = 'auto': no Ray runs on this machine; start one (`ray start --head`), name its host:port, or "
        "unset RAY_ADDRESS for a Ray of the run's own"
    )
    assert 'set runtime.address = "" for a Ray' in str(ClusterAddress("auto", "runtime.address").refused(error))


def test_a_cluster_of_another_version_is_named() -> None:
    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0")
    line = str(ClusterAddress("head:6379", "RAY_ADDRESS").refused(error))
    assert "refused the connection (Version mismatch: The cluster was started with: Ray: 2.9.0); check" in line


def test_a_refusal_names_where_the_token_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    address, refusal = ClusterAddress("head:6379", "RAY_ADDRESS"), ConnectionError("ping failed")
    assert "(none: neither RAY_AUTH_TOKEN nor ~/.ray/auth_token is there)" in str(address.refused(refusal))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0")
    assert str(address.refused(refusal)) == (
        "RAY_ADDRESS = 'head:6379': Ray refused the connection; check that it is a Ray head of this version and has "
        "the token used here (RAY_AUTH_TOKEN)"
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "Disabled")
    assert token_source() == "none: RAY_AUTH_MODE is disabled"


def test_a_token_in_the_environment_comes_before_an_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(ConfigError, match=r"^RAY_AUTH_TOKEN_PATH = '/nowhere/token': cannot be read \(No such file"):
        check_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0")
    check_token()
