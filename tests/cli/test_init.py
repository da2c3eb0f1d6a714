"""``saga-dist init``: a commented configuration for one's own images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import RunConfig, load_config
from saga_dist.config.section import Section
from saga_dist.errors import ConfigError
from saga_dist.utils.shipped import shipped_folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def class_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def init(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["init", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def uncommented(text: str) -> str:
    """Returns the file with every key set: ``# key = value`` without its sign of a comment."""
    return re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)


def test_the_file_is_the_shipped_configuration_for_these_images(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "im ages", "owl", "wren")
    output = init("mine", "--data", "im ages")
    expected = load_config(shipped_folder() / "configs" / "folder.toml", [f'data.root="{images}"'])
    assert load_config("mine.toml") == load_config("mine") == expected
    assert "layout folder" in output and "saga-dist data check 'im ages' --layout folder" in output


def test_every_key_is_there_with_its_description_and_its_default(tmp_path: Path) -> None:
    init("mine.toml", "--data", str(class_folders(tmp_path / "images", "owl", "wren")))
    text = Path("mine.toml").read_text()
    words = " ".join(text.replace("\n# ", " ").split())
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, Section) and f"[{name}]" in text
        for key, one in section.model_fields.items():
            if not (isinstance(one.annotation, type) and issubclass(one.annotation, Section)):
                assert re.search(rf"^(# )?{key} =", text, re.MULTILINE), key
                assert " ".join((one.description or "").split()) in words, key
    (tmp_path / "full.toml").write_text(uncommented(text))
    assert load_config("full.toml") == load_config("mine.toml")
    assert len(uncommented(text).splitlines()) == len(text.splitlines())


@pytest.mark.parametrize("layout", ["cub", "cars", "aircraft", "inat", "sop", "inshop", "manifest"])
def test_the_layout_is_detected_and_its_settings_are_taken(
    layout: str, tmp_path: Path, layout_makers: dict[str, Callable[[Path], object]]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    layout_makers[layout](root)
    init("mine", "--data", str(root))
    config = load_config("mine")
    assert config.data.layout == layout
    base = {"inat": "inat_aves", "manifest": "folder"}.get(layout, layout)
    shipped = load_config(base)
    assert config.model_copy(update={"data": shipped.data}) == shipped


def test_arguments_are_written_into_the_file(tmp_path: Path) -> None:
    images = str(class_folders(tmp_path / "images", "owl", "wren"))
    init("mine", "--data", images, "run.steps=7", "data.root=elsewhere")
    config = load_config("mine")
    assert (config.run.steps, config.data.root) == (7, "elsewhere")
    with pytest.raises(ConfigError, match="unknown key run.stepz"):
        CliRunner().invoke(app, ["init", "other", "--data", images, "run.stepz=7"], catch_exceptions=False)
    assert not Path("other.toml").exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    images = str(class_folders(tmp_path / "images", "owl", "wren"))
    Path("mine.toml").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine.toml: there is something already"):
        CliRunner().invoke(app, ["init", "mine", "--data", images], catch_exceptions=False)
    assert Path("mine.toml").read_text() == "precious"


def test_a_folder_name_cannot_write_keys(tmp_path: Path) -> None:
    images = class_folders(tmp_path / 'a"\n[run]\nsteps = 1\n#', "owl", "wren")
    init("mine", "--data", str(images))
    config = load_config("mine")
    assert (config.data.root, config.run.steps) == (str(images), load_config("folder").run.steps)
