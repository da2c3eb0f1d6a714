"""What travels in the ConfigMap: TOML that reads back, files that are here, paths that exist there."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_config, parse_config
from saga_dist.deploy.run_config import pack, to_toml
from saga_dist.errors import ConfigError

PaperRun = Callable[..., RunConfig]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"b": 'quote " backslash \\ newline \n tab \t bell \x07 delete \x7f umlaut ü bird 🐦'}},
        {"a": {"true": True, "false": False, "whole": 3, "float": 3.0, "small": 1e-300, "large": 1e22}},
        {"a": {"list": [1, 2.5, "x"], "empty": []}, "b": {}},
        {"a": {"odd key.with dot": 1, "": 2}, "b": {"c": {"d": {"e": "deep"}}, "f": 1}},
        {"top": 1, "table": {"x": 2}},
    ],
)
def test_toml_reads_back(tree: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(tree)) == tree


def test_numbers_keep_their_type() -> None:
    back = tomllib.loads(to_toml({"a": {"one": 1.0, "two": 2, "yes": True}}))["a"]
    assert [type(value) for value in back.values()] == [float, int, bool]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, b"x", "\udc80"])
def test_values_that_have_no_place(value: object) -> None:
    with pytest.raises(ConfigError):
        to_toml({"a": {"b": value}})


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_travel_unchanged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    if config.data.layout != "birds":
        config = load_config(path, ["data.root=/data/images", "model.path=/weights/model"])
    files = pack(config).files
    travelled = parse_config(tomllib.loads(files["run.toml"]), where="run.toml")
    if config.prompt.vocabulary.endswith(".toml"):  # the file goes along, and has a place of its own there
        assert files["prompt.vocabulary.toml"] == Path(config.prompt.vocabulary).read_text()
        there = config.prompt.model_copy(update={"vocabulary": "/config/prompt.vocabulary.toml"})
        config = config.model_copy(update={"prompt": there})
    pinned = config.model_copy(update={"runtime": config.runtime.model_copy(update={"pin_roles": True})})
    assert travelled == pinned
    assert travelled.digest() == config.digest()


def test_the_run_directory_is_the_entrypoints(paper_run: PaperRun) -> None:
    text = pack(paper_run(run={"directory": "/home/me/runs/1", "steps": 7})).files["run.toml"]
    assert tomllib.loads(text)["run"] == {"steps": 7}


def test_relative_files_travel_along(paper_run: PaperRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.toml").write_text('item = "shoe"\n')
    Path("train.txt").write_text("a\nb\n")
    config = paper_run(
        prompt={"vocabulary": "words.toml"}, data={"train_classes": "train.txt", "test_classes": "/data/test.txt"}
    )
    files = pack(config).files
    assert set(files) == {"run.toml", "prompt.vocabulary.toml", "data.train_classes.txt"}
    assert files["data.train_classes.txt"] == "a\nb\n"
    tree = tomllib.loads(files["run.toml"])
    assert tree["prompt"]["vocabulary"] == "/config/prompt.vocabulary.toml"
    assert tree["data"]["train_classes"] == "/config/data.train_classes.txt"
    assert tree["data"]["test_classes"] == "/data/test.txt"


def test_too_much_for_a_config_map(paper_run: PaperRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("x" * 1_000_001)
    with pytest.raises(ConfigError, match="expected at most 1000000; put the lists into the data volume"):
        pack(paper_run(data={"train_classes": "train.txt"}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"root": "images"}}, 'data.root = "images" on a cluster: expected a path below /data'),
        ({"data": {"root": "/data/../etc"}}, 'data.root = "/data/../etc" on a cluster: expected a path below /data'),
        (
            {"data": {"layout": "manifest", "manifest": "list.csv"}},
            'data.manifest = "list.csv" on a cluster: expected a path below /data',
        ),
        ({"model": {"path": "./model"}}, 'model.path = "./model" on a cluster: expected a path below /weights'),
        ({"model": {"path": "/data2/model"}}, "expected a path below /weights, where the pods see the volume"),
        (
            {"checkpoint": {"mirror": "file:///home/me/copies"}},
            'checkpoint.mirror = "/home/me/copies" on a cluster: expected a path below /runs',
        ),
        ({"runtime": {"kind": "serial"}}, 'runtime.kind = "serial" on a cluster: expected "ray"'),
        ({"runtime": {"address": "10.0.0.1:6379"}}, 'runtime.address = "10.0.0.1:6379" on a cluster: leave it ""'),
        ({"prompt": {"vocabulary": "missing.toml"}}, "prompt.vocabulary = 'missing.toml' cannot be read here"),
    ],
)
def test_what_means_nothing_on_a_cluster(
    paper_run: PaperRun, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        pack(paper_run(**sections))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_volumes_that_a_run_needs(paper_run: PaperRun) -> None:
    birds = parse_config(
        {"data": {"layout": "birds", "image_size": 80}, "prompt": {}, "model": {"path": "standin"}}, where="test"
    )
    assert (pack(birds).needs_weights, pack(birds).needs_data) == (False, False)
    folder, hub = pack(paper_run()), pack(paper_run(model={"path": "Qwen/Qwen3-VL-8B-Instruct"}))
    assert (folder.needs_weights, folder.needs_data, folder.hub_cache) == (True, True, False)
    assert (hub.needs_weights, hub.hub_cache) == (True, True)
