"""Mistakes in the part of the tower that trains, found before a model is loaded."""

from __future__ import annotations

from bad_inputs.row import BadInput, Workspace

DRY_RUN = "train run.toml --run-dir {folder}/run --dry-run"
RELEASED = "model.path=Qwen/Qwen3-VL-2B-Instruct objective.kl_layer=20 data.image_size=224"


def write(workspace: Workspace) -> None:
    """Writes the tiny run, which is valid."""
    workspace.write_config()


def no_peft(workspace: Workspace) -> None:
    """Writes the tiny run, and hides peft."""
    write(workspace)
    workspace.patch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())


def images(workspace: Workspace) -> None:
    """Writes the tiny run, and a folder of images."""
    write(workspace)
    workspace.image_folder()


ROWS = [
    BadInput(
        "no block that trains",
        "part that trains",
        f"{DRY_RUN} model.train=last:0",
        ("model.train", "'last:0'", '"last:N" with N of 1 or more'),
        write,
    ),
    BadInput(
        "a part of the tower that has no name",
        "part that trains",
        f"{DRY_RUN} model.train=first:2",
        ("model.train", "'first:2'", '"all", "lora" or "last:N"'),
        write,
    ),
    BadInput(
        "last blocks without a number",
        "part that trains",
        f"{DRY_RUN} model.train=last",
        ("model.train", "'last'", 'for example "last:4"'),
        write,
    ),
    BadInput(
        "more blocks that train than the tower has",
        "part that trains",
        f"{DRY_RUN} model.train=last:9",
        ('model.train = "last:9"', "at most last:1, all blocks of the tower", 'set model.train = "last:1"'),
        write,
    ),
    BadInput(
        "more blocks that train than a released tower has",
        "part that trains",
        f"{DRY_RUN} {RELEASED} data.layout=folder data.root={{folder}}/data data.val_fraction=0 model.train=last:30",
        ("Qwen/Qwen3-VL-2B-Instruct", 'model.train = "last:30"', "at most last:24", '"last:6"'),
        images,
    ),
    BadInput(
        "low-rank updates without peft",
        "package that is not installed",
        f"{DRY_RUN} model.train=lora",
        ("peft is not installed", 'model.train = "lora"', "pip install 'saga-dist[lora]'"),
        no_peft,
    ),
    BadInput(
        "low-rank updates of rank 0",
        "part that trains",
        f"{DRY_RUN} model.train=lora model.lora_rank=0",
        ("model.lora_rank = 0",),
        write,
    ),
    BadInput(
        "low-rank updates multiplied by zero",
        "part that trains",
        f"{DRY_RUN} model.train=lora model.lora_alpha=0",
        ("model.lora_alpha = 0",),
        write,
    ),
]
