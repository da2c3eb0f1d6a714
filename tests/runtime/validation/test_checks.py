"""The validation of a run: what the table of bad inputs does not show."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_dist.cli.main import main
from saga_dist.config import RunConfig, load_config
from saga_dist.errors import ConfigError, ModelError, OutputError
from saga_dist.models.checkpoint_sizes import checkpoint_sizes
from saga_dist.models.released_shapes import released_files
from saga_dist.models.supported import SUPPORTED_FAMILIES
from saga_dist.models.tower_size import num_tower_parameters
from saga_dist.runtime.ray import cluster_totals
from saga_dist.runtime.validation import cluster, machine, validate_run
from saga_dist.runtime.validation.gpus import visible_gpus

ROOT = Path(__file__).resolve().parents[3]
BIRDS = ROOT / "configs" / "birds.toml"
SHIPPED = sorted((ROOT / "configs").glob("*.toml"))


def birds(*overrides: str) -> RunConfig:
    return load_config(BIRDS, overrides)


def test_a_valid_run_has_no_warnings_and_leaves_no_file(tmp_path: Path) -> None:
    assert validate_run(birds(), tmp_path / "runs" / "mine") == []
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_are_one_error_that_names_all(tmp_path: Path) -> None:
    config = birds("objective.kl_layer=3", "data.birds.train_classes=40", "prompt.vocabulary=whales")
    with pytest.raises(ConfigError) as caught:
        validate_run(config, tmp_path / "run")
    text = str(caught.value)
    assert text.startswith("3 mistakes: (1) ")
    for part in ("prompt.vocabulary = 'whales'", "objective.kl_layer = 3", "train_classes = 40"):
        assert text.count(part) == 1
    assert "\n" not in text


def test_the_layer_below_the_last_is_the_largest_that_is_valid(tmp_path: Path) -> None:
    validate_run(birds("objective.kl_layer=2"), tmp_path / "run")
    with pytest.raises(ModelError, match=r"kl_layer = 3; expected a layer below 3; set objective.kl_layer = 2"):
        validate_run(birds("objective.kl_layer=3"), tmp_path / "run")
    without = ["objective.lambda_lm=0", "objective.lambda_kl=0"]
    validate_run(birds("objective.kl_layer=3", *without), tmp_path / "run")  # no MLLM, no layer


def test_train_fails_with_the_line_of_the_dry_run_and_loads_nothing(tmp_path: Path) -> None:
    """One process for each command: its last line, and the heavy modules it had imported."""
    code = (
        "import sys\n"
        "from saga_dist.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end:\n"
        "    print(end.code, *sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    arguments = ["train", str(BIRDS), "objective.kl_layer=9", "--run-dir", str(tmp_path / "run")]
    commands = ([*arguments, "--dry-run"], arguments, ["rollout", *arguments[1:]])
    found = set()
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout.splitlines()[-1] == "2"
        found.add(done.stderr.splitlines()[-1])  # above it, where it takes long, what is waited for
    (error,) = found
    assert error.startswith("error: ") and "objective.kl_layer = 9" in error
    assert not (tmp_path / "run").exists()


def test_no_shipped_configuration_imports_torch_to_be_validated(tmp_path: Path) -> None:
    """Most want data and GPUs that are not here, which the validation must find without torch."""
    code = (
        "import sys, pathlib\n"
        "from saga_dist.config import load_config\n"
        "from saga_dist.errors import UserError\n"
        "from saga_dist.runtime.preflight import describe\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(path, describe(load_config(path), pathlib.Path('run')))\n"
        "    except UserError as error: print(path, error)\n"
        "print('HEAVY', *sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))\n"
    )
    paths = [str(path) for path in SHIPPED]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "HEAVY"
    assert len(paths) >= 6
    for path in paths:
        assert sum(line.startswith(path) for line in lines) == 1
    assert "the configuration is valid" in done.stdout  # the birds'


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", SUPPORTED_FAMILIES)
def test_sizes_are_those_of_transformers(name: str) -> None:
    """Defaults that config.json leaves out, from the configuration classes themselves."""
    from saga_dist.config.registries import MODEL_FAMILIES

    family = MODEL_FAMILIES.load(name)
    released = {"qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct", "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct"}
    files = released_files(released.get(name, "OpenGVLab/InternVL3_5-8B-HF"))
    assert files is not None
    parsed = family.config_class.from_dict(dict(files["config.json"]))
    tower = parsed if name == "internvl" else parsed.vision_config
    found = checkpoint_sizes(files["config.json"], name)
    assert found.pixels_per_token == family.tower_class.layout_of(tower).pixels_per_token
    assert found.num_layers == parsed.text_config.num_hidden_layers
    written = checkpoint_sizes(json.loads(parsed.to_json_string(use_diff=False)), name)
    assert (written.pixels_per_token, written.num_layers) == (found.pixels_per_token, found.num_layers)


def test_a_context_with_scaled_positions_is_not_known() -> None:
    text = {"num_hidden_layers": 2, "max_position_embeddings": 128}
    assert checkpoint_sizes({"text_config": text}, "qwen3_vl").context == 128
    scaled = {**text, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    assert checkpoint_sizes({"text_config": scaled}, "qwen3_vl").context is None
    assert checkpoint_sizes({}, "qwen3_vl").num_layers is None


def test_parameters_of_the_tower_are_counted_from_the_headers(family_checkpoint: Path) -> None:
    from saga_dist.models.families import resolve_family

    tower = resolve_family(family_checkpoint).load_tower()
    assert num_tower_parameters(family_checkpoint) == sum(one.numel() for one in tower.parameters())


def test_headers_that_cannot_be_read_give_no_number(tmp_path: Path) -> None:
    assert num_tower_parameters(tmp_path) is None
    for content in (b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert num_tower_parameters(tmp_path) is None


# ---------------------------------------------------------------------- the machine


def test_gpus_are_device_files_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == 3
    for value, expected in {"": 0, "1": 1, "0,2": 2, "0,-1,2": 1, "0,1,2,3": 3, "MIG-a,MIG-b,MIG-c,MIG-d": 4}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus(tmp_path) == expected, value
    (tmp_path / "dxg").touch()
    assert visible_gpus(tmp_path) is None


def test_gpus_that_are_there_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: 1)
    shared = ("runtime.learner_num_gpus=0.7", "rollout.num_gpus=0.3")
    validate_run(birds(*shared), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"2 GPUs needed \(1 learner x 1 \+ 1 rollout x 1\), 1 there"):
        validate_run(birds("runtime.learner_num_gpus=1", "rollout.num_gpus=1"), tmp_path / "run")
    validate_run(birds("runtime.kind=serial", "model.device=cuda:0"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model.device = 'cuda:1', .*: 2 GPUs needed, 1 there"):
        validate_run(birds("runtime.kind=serial", "model.device=cuda:1"), tmp_path / "run")
    validate_run(birds("runtime.kind=serial", "replay.num_gpus=1"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"'auto', replay.num_gpus = 2: 2 GPUs needed, 1 there"):
        validate_run(birds("runtime.kind=serial", "replay.num_gpus=2"), tmp_path / "run")
    monkeypatch.setattr(machine, "visible_gpus", lambda: None)  # not known, so not a mistake
    validate_run(birds("runtime.learner_num_gpus=4"), tmp_path / "run")


@pytest.fixture(autouse=True)
def unknown_cluster() -> None:
    """A cluster is asked once a process, and each test has clusters of its own."""
    cluster._totals.cache_clear()


def test_on_a_cluster_what_is_not_here_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ["data.layout=folder", "data.root=/nowhere", "model.path=/nowhere/else", "runtime.learner_num_gpus=8"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster_totals, "cluster_totals", lambda address: None)  # it does not answer
    warnings = validate_run(birds(*elsewhere), tmp_path / "run")
    assert warnings == [
        "model.path = /nowhere/else is not on this machine; the nodes of the cluster need it",
        "data.root = /nowhere is not on this machine; the nodes of the cluster need it",
    ]
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match="3 mistakes: "):
        validate_run(birds(*elsewhere), tmp_path / "run")


def test_a_cluster_is_asked_once_for_all_runs_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cluster_totals, "cluster_totals", asked.append)  # returns None: it does not answer
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for seed in range(3):
        validate_run(birds(f"run.seed={seed}"), tmp_path / "run")
    assert asked == ["10.0.0.1:6379"]


def test_a_cluster_that_is_too_small_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = {"10.0.0.1:6379": {"CPU": 8.0}, "10.0.0.2:6379": {"CPU": 8.0, "GPU": 1.0, "learner": 1.0, "rollout": 1.0}}
    monkeypatch.setattr(cluster_totals, "cluster_totals", totals.get)
    wants = ("runtime.learner_num_gpus=1", "runtime.pin_roles=true")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (warning,) = validate_run(birds(*wants), tmp_path / "run")
    assert warning.startswith("the cluster at 10.0.0.1:6379 is too small, and the run will wait until it grows: ")
    assert "1 GPUs needed (1 learner x 1), 0 there; 1 of the resource 'learner' needed, 0 there" in warning
    assert validate_run(birds(*wants, "runtime.address=10.0.0.2:6379"), tmp_path / "run") == []


@pytest.mark.parametrize("address", ["auto", "http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1:99999"])
def test_an_address_of_no_head_is_not_asked(address: str) -> None:
    assert cluster_totals.cluster_totals(address) is None


def test_a_head_that_does_not_listen_is_not_waited_for() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert cluster_totals.cluster_totals(f"127.0.0.1:{closed.getsockname()[1]}") is None


def test_checkpoints_need_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    config = birds("checkpoint.every_steps=10", "checkpoint.keep=2")
    with pytest.raises(ConfigError, match=r"3 checkpoints take .* GB or more, 0.0 GB are free; lower checkpoint.keep"):
        validate_run(config, tmp_path / "run")
    validate_run(birds("model.train=last:1", "checkpoint.keep=2"), tmp_path / "part")  # its size is not known here
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # a run that goes on replaces its checkpoints
    (tmp_path / "run" / "config.json").write_text(config.model_dump_json())
    validate_run(config, tmp_path / "run")


def test_a_run_directory_whose_configuration_is_damaged_is_left_to_the_command_that_mends_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    validate_run(birds(), tmp_path)


# ---------------------------------------------------------------------- the command line


def test_fit_to_data_prints_the_overrides_that_it_sets(
    tmp_path: Path,
    tiny_checkpoint: Path,
    write_tiny_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from runtime.validation.test_fit import write_folder

    data = {"layout": "folder", "root": str(write_folder(tmp_path / "data", 4, 3)), "batch_size": 16}
    config = write_tiny_config(tmp_path / "run.toml", tiny_checkpoint, data={**data, "images_per_class": 4})
    arguments = ["saga-dist", "train", str(config), "--run-dir", str(tmp_path / "run"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--fit-to-data"])
    main_code = _exit_code()
    out = capsys.readouterr().out
    assert main_code == 0
    assert out.startswith("fitted to the data: data.val_fraction=0 data.batch_size=6 data.images_per_class=3\n")
    assert "batch    6 images = 2 classes x 3" in out
    monkeypatch.setattr(sys, "argv", [*arguments, *out.splitlines()[0].partition(": ")[2].split()])
    assert _exit_code() == 0
    assert capsys.readouterr().out == out.partition("\n")[2]


def _exit_code() -> int:
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_limits_of_vllm_hold_where_it_samples_only(tmp_path: Path) -> None:
    hot = ["rollout.temperature=2.5", "rollout.engine=vllm"]
    with pytest.raises(ConfigError, match="rollout.temperature = 2.5; expected 0.01 to 2"):
        validate_run(birds(*hot), tmp_path / "run")
    validate_run(birds(*hot, "rollout.engine=transformers"), tmp_path / "run")
    alone = ["objective.lambda_lm=0", "objective.lambda_kl=0", "evaluation.verdict_pairs=0"]
    validate_run(birds(*hot, *alone), tmp_path / "run")
    validate_run(birds("rollout.temperature=2", "rollout.engine=vllm"), tmp_path / "run")
    validate_run(birds("rollout.temperature=0.01", "rollout.engine=vllm"), tmp_path / "run")


def test_the_most_completions_of_a_pair_follow_vllms_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = birds("rollout.group_size=32", "rollout.engine=vllm")
    validate_run(config, tmp_path / "run")
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "31")
    with pytest.raises(ConfigError, match="rollout.group_size = 32; expected at most 31"):
        validate_run(config, tmp_path / "run")


def test_a_completion_longer_than_the_context_is_found_for_models_whose_sizes_are_unknown(tmp_path: Path) -> None:
    config = birds("model.path=org/name", "rollout.max_tokens=600", "rollout.max_model_len=512")
    with pytest.raises(ConfigError, match=r"images 0 \+ rollout.max_tokens 600 = 600 tokens"):
        validate_run(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_found_before_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None if package == name else object())
    with pytest.raises(ConfigError, match=rf'package {name} is not installed; pip install "saga-dist\[{name}\]"'):
        validate_run(birds(f"logging.{name}=mine"), tmp_path / "run")


def test_a_run_directory_in_rays_copy_of_a_working_directory_is_refused(tmp_path: Path) -> None:
    """The commands refuse it before; `doctor` takes it from the configuration."""
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    with pytest.raises(OutputError, match="is in Ray's copy of the job's working directory.*give --run-dir"):
        validate_run(birds(), copy / "runs" / "mine")
