"""Mistakes in a configuration: found by ``--dry-run``, before anything heavy is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bad_inputs.row import BadInput, Workspace

TRAIN = "train run.toml --run-dir {folder}/run"
DRY_RUN = f"{TRAIN} --dry-run"
FOLDER_RUN = f"{DRY_RUN} data.layout=folder data.root={{folder}}/data data.val_fraction=0"


def write(workspace: Workspace) -> None:
    """Writes the tiny run, which is valid."""
    workspace.write_config()


def small_class(workspace: Workspace) -> None:
    """Writes a run and eight classes, of which the second has one image less than the batch takes of a class."""
    write(workspace)
    (workspace.image_folder() / "class_01" / "004.png").unlink()


def folder_of(classes: int, images: int) -> object:
    """Returns a preparation: a run, and a folder of so many classes and images."""

    def prepare(workspace: Workspace) -> None:
        write(workspace)
        workspace.image_folder(classes=classes, images=images)

    return prepare


def copied_model(workspace: Workspace) -> Path:
    """Writes a run and a copy of the model, which a row may damage."""
    write(workspace)
    return Path(shutil.copytree(workspace.model, workspace.folder / "model"))


def without(name: str) -> object:
    """Returns a preparation: a run, and a copy of the model without one of its files."""
    return lambda workspace: (copied_model(workspace) / name).unlink()


def sharded(workspace: Workspace) -> None:
    """Writes a model whose index names a file that is not there."""
    folder = copied_model(workspace)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def earlier_run(workspace: Workspace) -> None:
    """Writes a run directory in which the tiny run has taken a step."""
    from saga_dist.config import load_config

    run = workspace.folder / "run"
    run.mkdir()
    (run / "config.json").write_text(load_config(workspace.write_config()).model_dump_json())
    (run / "metrics.jsonl").write_text('{"step": 1}\n')


def someone_elses_folder(workspace: Workspace) -> None:
    write(workspace)
    (workspace.folder / "run").mkdir()
    (workspace.folder / "run" / "thesis.txt").write_text("mine")


def a_file_for_a_folder(workspace: Workspace) -> None:
    write(workspace)
    (workspace.folder / "run").write_text("a file")


def short_recording(workspace: Workspace) -> None:
    """Writes a recording of one step, for a run of two."""
    earlier_run(workspace)
    (workspace.folder / "run").rename(workspace.folder / "recorded")
    (workspace.folder / "recorded" / "rollouts").mkdir()
    (workspace.folder / "recorded" / "rollouts" / "step_000000.arrow").touch()


def no_vllm(workspace: Workspace) -> None:
    write(workspace)
    workspace.patch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else object())


ROWS = [
    BadInput("an unknown key", "unknown key", f"{DRY_RUN} run.stepps=3", ("run.stepps", "run.steps"), write),
    # classes and images
    BadInput(
        "a batch of more classes than there are",
        "sampler against data",
        f"{FOLDER_RUN} data.batch_size=10",
        ("4 training classes", "at least 5", "--fit-to-data", "data.batch_size=8"),
        folder_of(8, 4),
    ),
    BadInput(
        "a class with fewer images than the batch takes of it",
        "sampler against data",
        f"{FOLDER_RUN} data.images_per_class=4",
        ("training class 'class_01' has 3 images", "images_per_class = 4", "data.images_per_class=3"),
        small_class,
    ),
    BadInput(
        "two small classes",
        "sampler against data",
        f"{FOLDER_RUN} data.images_per_class=4",
        ("training class 'class_00' has 3 images and 3 more classes have too few", "data.images_per_class=3"),
        folder_of(8, 3),
    ),
    BadInput(
        "birds with fewer images of a species than the batch takes",
        "sampler against data",
        f"{DRY_RUN} data.images_per_class=4",
        ("built-in species 0 has 3 images", "data.images_per_class"),
        write,
    ),
    BadInput(
        "more built-in species than there are",
        "sampler against data",
        f"{DRY_RUN} data.birds.train_classes=33",
        ("train_classes = 33", "at most 32"),
        write,
    ),
    BadInput(
        "validation classes that leave one class to train on",
        "small data",
        f"{DRY_RUN} data.layout=folder data.root={{folder}}/data data.val_fraction=0.5",
        (
            "3 training classes of which 2 are for validation",
            "--fit-to-data",
            "data.val_fraction=0",
            "data.batch_size=6",
        ),
        folder_of(6, 4),
    ),
    BadInput(
        "three classes",
        "small data",
        f"{TRAIN} --fit-to-data data.layout=folder data.root={{folder}}/data",
        ("1 training classes", "at least 2", "4 are needed"),
        folder_of(3, 4),
    ),
    BadInput(
        "one image in a training class",
        "small data",
        f"{TRAIN} --fit-to-data data.layout=folder data.root={{folder}}/data",
        ("'class_00' has 1 image", "at least 2", "add images"),
        folder_of(4, 1),
    ),
    BadInput(
        "settings fitted to the built-in birds",
        "small data",
        f"{TRAIN} --fit-to-data",
        ("--fit-to-data", "data.birds", "remove it"),
        write,
    ),
    BadInput(
        "more pairs to judge than the test images have",
        "evaluation against data",
        f"{FOLDER_RUN} evaluation.verdict_pairs=100",
        ("50 same-class pairs", "have 24", "evaluation.verdict_pairs=49"),
        folder_of(8, 4),
    ),
    BadInput(
        "more pairs to judge than the built-in birds have",
        "evaluation against data",
        f"{DRY_RUN} evaluation.verdict_pairs=1000",
        ("500 same-class pairs", "evaluation.verdict_pairs"),
        write,
    ),
    # metric loss
    BadInput(
        "a parameter of another metric loss",
        "metric loss parameter",
        f"{DRY_RUN} objective.metric_params.proxies_per_class=3",
        ("objective.metric_params.proxies_per_class", "proxy_anchor", "margin, alpha"),
        write,
    ),
    BadInput(
        "a parameter as text",
        "metric loss parameter",
        f"{DRY_RUN} objective.metric_params.alpha=large",
        ("objective.metric_params.alpha", "'large'", "a positive number"),
        write,
    ),
    BadInput(
        "a parameter out of range",
        "metric loss parameter",
        f"{DRY_RUN} objective.metric_loss=multi_similarity objective.metric_params.miner=-0.1",
        ("objective.metric_params.miner", "-0.1", "a number >= 0"),
        write,
    ),
    BadInput(
        "a reduction that does not exist",
        "metric loss parameter",
        f"{DRY_RUN} objective.metric_loss=potential_field objective.metric_params.reduction=median",
        ("objective.metric_params.reduction", "'median'", "per_pair"),
        write,
    ),
    BadInput(
        "a fraction of a proxy",
        "metric loss parameter",
        f"{DRY_RUN} objective.metric_loss=potential_field objective.metric_params.proxies_per_class=1.5",
        ("objective.metric_params.proxies_per_class", "1.5", "whole number"),
        write,
    ),
    # model
    BadInput(
        "a layer that the model does not have",
        "model sizes",
        f"{DRY_RUN} objective.kl_layer=26",
        ("objective.kl_layer = 26", "a layer below 3", "set objective.kl_layer = 2"),
        write,
    ),
    BadInput(
        "a layer that the stand-in does not have",
        "model sizes",
        f"{DRY_RUN} model.path=standin-1 objective.kl_layer=3",
        ("objective.kl_layer = 3", "a layer below 3"),
        write,
    ),
    BadInput(
        "a layer that a released model does not have",
        "model sizes",
        f"{DRY_RUN} model.path=Qwen/Qwen3-VL-2B-Instruct objective.kl_layer=28 data.image_size=224 "
        "data.layout=folder data.root={folder}/data data.val_fraction=0",
        ("Qwen/Qwen3-VL-2B-Instruct", "objective.kl_layer = 28", "a layer below 28"),
        folder_of(8, 4),
    ),
    BadInput(
        "an image that is no whole number of tokens wide",
        "model sizes",
        f"{FOLDER_RUN} data.image_size=90",
        ("data.image_size = 90", "a multiple of 16", "80 or 96"),
        folder_of(8, 4),
    ),
    BadInput(
        "a completion that is longer than the context",
        "context",
        f"{DRY_RUN} rollout.max_tokens=5000",
        ("rollout.max_tokens 5000", "rollout.max_model_len = 4096", "lower rollout.max_tokens"),
        write,
    ),
    BadInput(
        "a prompt that is longer than the context",
        "context",
        f"{DRY_RUN} rollout.max_model_len=64 prompt.vocabulary=birds",
        ("images 50", "rollout.max_model_len = 64"),
        write,
    ),
    BadInput(
        "a context that is longer than the model's",
        "context",
        f"{DRY_RUN} rollout.engine=vllm rollout.max_model_len=100000",
        ("rollout.max_model_len = 100000", "max_position_embeddings", "set rollout.max_model_len"),
        write,
    ),
    BadInput(
        "a model without weights",
        "model folder",
        f"{DRY_RUN} model.path={{folder}}/model",
        ("has no model.safetensors", "fetch it again"),
        without("model.safetensors"),
    ),
    BadInput(
        "a model without its preprocessing",
        "model folder",
        f"{DRY_RUN} model.path={{folder}}/model",
        ("has no preprocessor_config.json",),
        without("preprocessor_config.json"),
    ),
    BadInput(
        "a model without its tokenizer",
        "model folder",
        f"{DRY_RUN} model.path={{folder}}/model",
        ("has no tokenizer_config.json",),
        without("tokenizer_config.json"),
    ),
    BadInput(
        "a model without one of its shards",
        "model folder",
        f"{DRY_RUN} model.path={{folder}}/model",
        ("has no model-00002-of-00002.safetensors", "fetch it again"),
        sharded,
    ),
    # prompt
    BadInput(
        "a vocabulary that does not exist",
        "prompt",
        f"{DRY_RUN} prompt.vocabulary=whales",
        ("prompt.vocabulary = 'whales'", "standin_birds"),
        write,
    ),
    BadInput(
        "a vocabulary without attributes",
        "prompt",
        f"{DRY_RUN} prompt.vocabulary={{folder}}/words.toml",
        ("words.toml", "attributes is missing"),
        lambda workspace: (
            write(workspace),
            (workspace.folder / "words.toml").write_text(
                "\n".join(f'{key} = "x"' for key in ("item", "plural", "expert", "identifies", "verdict_question"))
                + '\nverdict_key = "same"\n'
            ),
        ),
    ),
    # machine
    BadInput(
        "a GPU where there is none",
        "devices",
        f"{TRAIN} model.device=cuda",
        ("model.device = 'cuda'", "1 GPUs needed, 0 there", 'model.device = "auto"'),
        write,
    ),
    BadInput(
        "a device that does not exist",
        "devices",
        f"{DRY_RUN} model.device=gpu",
        ("model.device = 'gpu'", "auto, cpu, cuda or cuda:N"),
        write,
    ),
    BadInput(
        "GPUs for a Ray of this machine, which has none",
        "devices",
        f"{TRAIN} runtime.kind=ray runtime.learner_num_gpus=1 rollout.num_gpus=1",
        ("2 GPUs needed", "0 there", "rollout.num_gpus", "runtime.address"),
        write,
    ),
    BadInput(
        "more workers than a local Ray has CPUs",
        "devices",
        f"{TRAIN} runtime.kind=ray rollout.workers=4",
        ("5 CPUs needed", "runtime.local_cpus = 2", "raise runtime.local_cpus"),
        write,
    ),
    BadInput(
        "an engine that is not installed",
        "devices",
        f"{DRY_RUN} rollout.engine=vllm",
        ("vllm is not installed", "rollout.engine=transformers"),
        no_vllm,
    ),
    # run directory
    BadInput(
        "a run directory of another configuration",
        "run directory",
        f"{TRAIN} run.seed=7 objective.lambda_kl=2",
        ("objective.lambda_kl: 1.0 != 2.0", "run.seed: 0 != 7", "--run-dir"),
        earlier_run,
    ),
    BadInput(
        "a run directory with someone else's files",
        "run directory",
        DRY_RUN,
        ("holds files but no config.json", "choose a new --run-dir"),
        someone_elses_folder,
    ),
    BadInput("a run directory that is a file", "run directory", DRY_RUN, ("run", "--run-dir"), a_file_for_a_folder),
    # recording
    BadInput(
        "a recording of fewer steps than the run",
        "recording",
        f"{DRY_RUN} --from-recording {{folder}}/recorded",
        ("step 1 was not recorded", "set run.steps = 1"),
        short_recording,
    ),
    BadInput(
        "a recording that is no run directory",
        "recording",
        f"{DRY_RUN} --from-recording {{folder}}/nowhere",
        ("nowhere", "a run directory"),
        write,
    ),
    # several at once
    BadInput(
        "three mistakes at once",
        "several mistakes",
        f"{TRAIN} objective.kl_layer=26 prompt.vocabulary=whales model.device=cuda",
        ("3 mistakes", "whales", "kl_layer = 26", "model.device"),
        write,
    ),
]
