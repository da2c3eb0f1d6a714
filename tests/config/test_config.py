"""The configuration is strict: every mistake is one line with file and key, every shipped file parses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from saga_dist.config import ADDED_KEYS, FREE_KEYS, RunConfig, Section, load_config, parse_config
from saga_dist.errors import ConfigError

ROOT = Path(__file__).parents[2]
BIRDS = {"data": {"layout": "birds", "image_size": 80}}


def merged(changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {name: dict(section) for name, section in BIRDS.items()}
    for name, section in changes.items():
        tree.setdefault(name, {}).update(section)
    return tree


def refused(changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(merged(changes), where="run.toml")
    message = str(caught.value)
    assert message.startswith("run.toml: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message.removeprefix("run.toml: ")


def test_defaults_are_the_papers() -> None:
    config = parse_config({"data": {"root": "/images"}}, where="test")
    assert (config.rollout.group_size, config.rollout.contributing_groups) == (8, 8)
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.max_tokens) == (0.7, 0.95, 1024)
    assert (config.data.batch_size, config.data.image_size) == (64, 224)
    assert (config.optimizer.lr_encoder, config.optimizer.lr_pooler) == (2e-5, 1e-4)
    assert (config.optimizer.schedule, config.optimizer.warmup_fraction) == ("cosine", 0.05)
    assert config.optimizer.clip_norm == 1.0
    objective = config.objective
    assert (objective.lambda_dml, objective.lambda_lm, objective.lambda_kl) == (1.0, 1.0, 1.0)
    assert (objective.metric_loss, objective.kl_layer) == ("potential_field", 26)
    assert (config.model.embedding_dim, config.model.pooler, config.model.dtype) == (4096, "attention", "bfloat16")


# ---------------------------------------------------------------------- single keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"group_size": 1}}, "rollout.group_size = 1: input should be greater than or equal to 2"),
        ({"optimizer": {"lr_encoder": -1.0}}, "optimizer.lr_encoder = -1.0: input should be greater than 0"),
        ({"optimizer": {"lr_encoder": "1e-4"}}, "optimizer.lr_encoder = '1e-4': input should be a valid number"),
        ({"run": {"steps": 1.5}}, "run.steps = 1.5: input should be a valid integer"),
        ({"run": {"steps": True}}, "run.steps = True: input should be a valid integer"),
        ({"run": {"steps": "10"}}, "run.steps = '10': input should be a valid integer"),
        ({"run": {"seed": -1}}, "run.seed = -1: input should be greater than or equal to 0"),
        ({"data": {"flip": 1}}, "data.flip = 1: input should be a valid boolean"),
        ({"data": {"root": 7}}, "data.root = 7: input should be a valid string"),
        ({"model": {"pooler": "avg"}}, "model.pooler = 'avg': input should be 'mean', 'max' or 'attention'"),
        ({"runtime": {"kind": "Ray"}}, "runtime.kind = 'Ray': input should be 'ray' or 'serial'"),
        ({"rollout": {"top_p": 1.01}}, "rollout.top_p = 1.01: input should be less than or equal to 1"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature = 0: input should be greater than 0"),
        ({"data": {"val_fraction": 1.0}}, "data.val_fraction = 1.0: input should be less than 1"),
        ({"optimizer": {"lr_encoder": float("nan")}}, "optimizer.lr_encoder = nan"),
        ({"optimizer": {"lr_encoder": float("inf")}}, "optimizer.lr_encoder = inf"),
        ({"rollout": {"deadline_s": float("inf")}}, "rollout.deadline_s = inf"),
        ({"data": {"birds": {"train_classes": 1}}}, "data.birds.train_classes = 1: input should be greater than"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep = 0: input should be greater than or equal to 1"),
        (
            {"objective": {"metric_loss": "proxy_anker"}},
            "objective.metric_loss: unknown metric loss 'proxy_anker'; expected one of potential_field, proxy_anchor, "
            "multi_similarity, infonce, or package.module:object",
        ),
        (
            {"objective": {"reward": "verdicts"}},
            "objective.reward: unknown reward 'verdicts'; expected one of verdict, or package.module:object",
        ),
        (
            {"prompt": {"variant": "plain"}},
            "prompt.variant: unknown prompt template 'plain'; expected one of structured, generic, or package.module:",
        ),
        ({"objective": {"reward": "own_reward"}}, "objective.reward: unknown reward 'own_reward'; expected one of"),
        ({"objective": {"reward": 1}}, "objective.reward = 1: input should be a valid string"),
        ({"run": 5}, "run = 5: input should be a valid dictionary"),
        (
            {"rollout": {"engine": "sglang"}},
            "rollout.engine: unknown rollout engine 'sglang'; expected one of vllm, transformers, or package.module",
        ),
        (
            {"data": {"layout": "cubs"}},
            "data.layout: unknown data layout 'cubs'; expected one of birds, folder, manifest, cub, cars, aircraft",
        ),
        (
            {"model": {"family": "llama"}},
            "model.family: unknown model family 'llama'; expected one of qwen3_vl, qwen2_5_vl, internvl, or package",
        ),
        ({"rollout": {"engine": 5}}, "rollout.engine = 5: input should be a valid string"),
    ],
)
def test_a_wrong_value_names_key_value_and_rule(changes: dict[str, Any], message: str) -> None:
    if changes == {"run": 5}:
        with pytest.raises(ConfigError, match="run = 5: input should be a valid dictionary"):
            parse_config({**BIRDS, "run": 5}, where="run.toml")
    else:
        assert refused(changes).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"group_sise": 8}}, "unknown key rollout.group_sise; did you mean rollout.group_size?"),
        ({"optimizer": {"lr": 1e-4}}, "unknown key optimizer.lr"),
        ({"rolout": {"group_size": 8}}, "unknown key rolout; did you mean rollout?"),
        ({"data": {"birds": {"sed": 3}}}, "unknown key data.birds.sed; did you mean data.birds.seed?"),
        ({"zzz": {"x": 1}}, "unknown key zzz; remove it"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(changes: dict[str, Any], message: str) -> None:
    assert refused(changes).startswith(message)


def test_objects_of_ones_own_are_named_by_import_path_and_not_imported() -> None:
    changes = {"objective": {"reward": "not.there:reward", "metric_loss": "not.there:Loss"}}
    config = parse_config(merged({**changes, "prompt": {"variant": "not.there:TEMPLATE"}}), where="test")
    assert (config.objective.reward, config.objective.metric_loss) == ("not.there:reward", "not.there:Loss")
    assert config.prompt.variant == "not.there:TEMPLATE"
    assert config.digest() != parse_config(BIRDS, where="test").digest()


def test_further_problems_are_counted() -> None:
    message = refused({"rollout": {"group_size": 1, "top_p": 2.0}, "run": {"steps": 0}})
    assert message.endswith("(2 more)")


def test_the_data_section_is_required() -> None:
    with pytest.raises(ConfigError, match=r"^run.toml: data is missing; add it$"):
        parse_config({}, where="run.toml")


# ---------------------------------------------------------------------- keys against each other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"batch_size": 30}},
            "data: batch_size = 30 is not divisible by images_per_class = 4; expected whole classes; try",
        ),
        (
            {"data": {"batch_size": 4}},
            "data: batch_size = 4 holds one class of 4 images; expected at least two classes",
        ),
        (
            {"data": {"layout": "folder"}},
            "data: root is empty; expected the folder of the data set; set data.root",
        ),
        (
            {"data": {"batch_size": 80}},
            "data: a batch of 20 classes from 16 training classes; lower batch_size or raise birds.train_classes",
        ),
        ({"rollout": {"pairs_per_batch": 7}}, "rollout: pairs_per_batch = 7 is odd; expected an even number"),
        (
            {"rollout": {"workers": 3, "max_workers": 2}},
            "rollout: workers = 3 with min_workers = 0 and max_workers = 2; expected min_workers <= workers",
        ),
        (
            {"replay": {"workers": 1, "min_workers": 2}},
            "replay: workers = 1 with min_workers = 2 and max_workers = 0; expected min_workers <= workers",
        ),
        (
            {"replay": {"max_workers": 2}},
            "replay: max_workers = 2 with workers = 0; expected workers >= 1; set workers, or leave max_workers out",
        ),
        (
            {"data": {"image_size": 96}},
            "data: image_size = 96; expected 80, the size of the built-in birds; set data.image_size = 80",
        ),
        (
            {"rollout": {"pairs_per_batch": 66}},
            "rollout.pairs_per_batch = 66 from data.batch_size = 64 images; expected at most one pair per image",
        ),
        (
            {"prompt": {"variant": "generic"}},
            'objective.lambda_kl > 0 with prompt.variant = "generic": the generic prompt describes no image',
        ),
        (
            {"objective": {"signal": "verdict"}},
            'objective: lambda_kl = 1 with signal = "verdict": the forced answer describes no image, so L_KL is '
            'undefined; set objective.lambda_kl = 0 or objective.signal = "grpo"',
        ),
        (
            {"objective": {"signal": "verdict", "lambda_kl": 0, "reward": "a.module:reward"}},
            'objective: reward = "a.module:reward" with signal = "verdict": no completion is sampled',
        ),
        (
            {"objective": {"signal": "verdict", "lambda_kl": 0}, "rollout": {"max_staleness": 2}},
            'rollout.max_staleness = 2 with objective.signal = "verdict": nothing is sampled, so nothing can be '
            "sampled ahead; set rollout.max_staleness = 0",
        ),
        (
            {"objective": {"signal": "verdict", "lambda_kl": 0}, "rollout": {"recording": "runs/x"}},
            'rollout.recording with objective.signal = "verdict": the verdict loss uses no completions',
        ),
        (
            {"model": {"pooler": "mean"}},
            'objective.lambda_kl > 0 with model.pooler = "mean": only the attention pooler has weights to align',
        ),
        (
            {"runtime": {"learner_processes": 2, "kind": "serial"}},
            'runtime: learner_processes = 2 with kind = "serial": one process is all there is; set',
        ),
        (
            {"runtime": {"learner_processes": 2, "learner_num_gpus": 0.5}, "replay": {"workers": 1}},
            "runtime: learner_processes = 2 with learner_num_gpus = 0.5: expected a GPU of its own for each process",
        ),
        (
            {"runtime": {"learner_processes": 2}},
            "runtime.learner_processes = 2 with replay.workers = 0: token gradients must reach every process; expected",
        ),
        (
            {"runtime": {"learner_processes": 65}, "replay": {"workers": 1}},
            "runtime.learner_processes = 65 for data.batch_size = 64 images; expected at least one image for each",
        ),
        (
            {"rollout": {"tensor_parallel_size": 2, "engine": "transformers"}},
            'rollout: tensor_parallel_size = 2 with engine = "transformers": only vLLM spreads its weights; set',
        ),
        (
            {"rollout": {"tensor_parallel_size": 2, "num_gpus": 1.0}},
            "rollout: tensor_parallel_size = 2 with num_gpus = 1: expected one whole GPU for each part; set",
        ),
        (
            {"rollout": {"num_gpus": 2.0}},
            "rollout: num_gpus = 2 with tensor_parallel_size = 1: all but one would idle; set",
        ),
    ],
)
def test_keys_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    assert refused(changes).startswith(message)


def test_the_contradictions_end_where_they_should() -> None:
    parse_config(merged({"prompt": {"variant": "generic"}, "objective": {"lambda_kl": 0}}), where="test")
    parse_config(merged({"model": {"pooler": "mean"}, "objective": {"lambda_kl": 0.0}}), where="test")
    parse_config(merged({"rollout": {"pairs_per_batch": 64}}), where="test")
    metric_loss_only = {"objective": {"lambda_lm": 0.0, "lambda_kl": 0.0}}  # no token gradients to share
    parse_config(merged({"runtime": {"learner_processes": 2}, **metric_loss_only}), where="test")
    parse_config(merged({"rollout": {"tensor_parallel_size": 2}}), where="test")  # on CPUs
    for gpus in ({"tensor_parallel_size": 2, "num_gpus": 1.0}, {"num_gpus": 4.0}):  # what it does with them, it knows
        parse_config(merged({"rollout": {"engine": "package.module:engine", **gpus}}), where="test")
    own = {"layout": "package.module:layout", "manifest": "x.csv", "train_classes": "a", "image_size": 64}
    parse_config({"data": own}, where="test")
    elastic = parse_config(merged({"rollout": {"workers": 2, "max_workers": 4}}), where="test")
    assert elastic.rollout.worker_range == (2, 4)
    assert elastic.replay.worker_range == (0, 0)


def test_the_mllm_is_needed_to_train_with_it_or_to_judge() -> None:
    dml = {"lambda_lm": 0.0, "lambda_kl": 0.0}
    assert parse_config(BIRDS, where="test").needs_mllm
    assert parse_config(merged({"objective": {**dml, "lambda_lm": 0.5}}), where="test").needs_mllm
    assert not parse_config(merged({"objective": dml}), where="test").needs_mllm
    assert parse_config(merged({"objective": dml, "evaluation": {"verdict_pairs": 2}}), where="test").needs_mllm


def test_verdicts_need_the_mllm_and_no_engine_unless_they_are_evaluated() -> None:
    verdict = {"signal": "verdict", "lambda_kl": 0.0}
    config = parse_config(merged({"objective": verdict}), where="test")
    assert (config.needs_mllm, config.needs_engine, config.completions_per_pair) == (True, False, 2)
    assert (config.objective.needs_verdicts, config.objective.needs_rollouts) == (True, False)
    assert parse_config(merged({"objective": verdict, "evaluation": {"verdict_pairs": 2}}), where="test").needs_engine
    grpo = parse_config(BIRDS, where="test")
    assert (grpo.objective.needs_verdicts, grpo.objective.needs_rollouts, grpo.completions_per_pair) == (False, True, 8)
    one_by_one = {"replay": {"completions_per_chunk": 1}}
    assert parse_config(merged({"objective": verdict, **one_by_one}), where="test").completions_at_once == 2
    assert parse_config(merged(one_by_one), where="test").completions_at_once == 1
    alone = parse_config(merged({"objective": {**verdict, "lambda_lm": 0.0}}), where="test")
    assert (alone.needs_mllm, alone.objective.needs_verdicts) == (False, False)


# ---------------------------------------------------------------------- files and overrides


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nlayout = "birds"\nimage_size = 80\n[run]\nsteps = 5\n')
    config = load_config(
        path, ["run.steps=7", "model.path=standin", "data.birds.seed = 3", 'prompt.vocabulary="cars"', "data.flip=true"]
    )
    assert (config.run.steps, config.model.path, config.data.birds.seed) == (7, "standin", 3)
    assert config.prompt.vocabulary == "cars"
    assert config.data.flip is True
    assert load_config(path).run.steps == 5


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nlayout = "birds"\nimage_size = 80\n[optimizer]\nlr_encoder = 3e-4\nlr_pooler = 1\n')
    config = load_config(path, ["optimizer.weight_decay=1e-3"])
    assert (config.optimizer.lr_encoder, config.optimizer.lr_pooler) == (3e-4, 1.0)
    assert config.optimizer.weight_decay == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=7", "override 'steps=7'; expected section.key=value"),
        ("run.steps", "expected section.key=value"),
        ("=7", "expected section.key=value"),
        ("run.=7", "expected section.key=value"),
        ("run.steps.x=7", "expected a key below a section"),
    ],
)
def test_a_malformed_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path, '[data]\nlayout = "birds"\nimage_size = 80\n[run]\nsteps = 5\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert str(caught.value).startswith("command line: override")
    assert message in str(caught.value)


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nlayout = "birds"\nimage_size = 80\n')
    with pytest.raises(ConfigError, match=r"rollout.group_size = 1: input should be greater"):
        load_config(path, ["rollout.group_size=1"])
    with pytest.raises(ConfigError, match="unknown key run.stepz"):
        load_config(path, ["run.stepz=1"])


def test_an_override_cannot_inject_further_keys(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nlayout = "birds"\nimage_size = 80\n')
    with pytest.raises(ConfigError, match=r"expected one section.key=value"):
        load_config(path, ['model.path="a"\nb = 1'])


def test_a_key_that_cannot_be_printed_stays_on_one_line() -> None:
    assert refused({"run": {"a\nb\x1b[2J": 1}}).startswith("unknown key run.'a\\nb\\x1b[2J'")


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot read the file \(No such file or directory\); check the"):
        load_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"cannot read the file \(Is a directory\)"):
        load_config(tmp_path)
    path = write(tmp_path, "[data\n")
    with pytest.raises(ConfigError, match=r"run.toml: not valid TOML") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe[data]")
    with pytest.raises(ConfigError, match="the file is not UTF-8 text; expected TOML"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read the file"):
        load_config("a\0b.toml")


def test_every_shipped_file_parses() -> None:
    shipped = [*sorted((ROOT / "configs").glob("*.toml")), *sorted((ROOT / "saga_dist" / "standin").glob("demo*.toml"))]
    assert len(shipped) >= 2
    for path in shipped:
        config = load_config(path)
        assert parse_config(config.model_dump(mode="json"), where=str(path)) == config


# ---------------------------------------------------------------------- digest


def digest(changes: dict[str, Any]) -> str:
    return parse_config(merged(changes), where="test").digest()


def test_the_digest_is_a_function_of_what_decides_the_result() -> None:
    base = digest({})
    assert digest({"run": {"steps": 1000}}) == base  # a default written out
    assert digest({"optimizer": {"clip_norm": 1}}) == base  # 1 and 1.0
    for free in (
        {"runtime": {"kind": "serial", "threads": 2}},
        {"checkpoint": {"keep": 9, "every_steps": 5}},
        {"run": {"directory": "/elsewhere"}},
        {"objective": {"min_share": 0, "min_share_steps": 5}},
    ):
        assert digest(free) == base
    deciding: list[dict[str, Any]] = [
        {"run": {"seed": 1}},
        {"run": {"steps": 999}},
        {"data": {"batch_size": 32}},
        {"data": {"birds": {"seed": 12}}},
        {"objective": {"lambda_lm": 0.5}},
        {"objective": {"balance": "gradient_norm"}},
        {"objective": {"metric_params": {"alpha": 3}}},
        {"model": {"path": "standin"}},
        {"optimizer": {"lr_encoder": 1e-5}},
        {"rollout": {"temperature": 1.0}},
        {"evaluation": {"every_steps": 10}},
    ]
    assert len({base, *map(digest, deciding)}) == len(deciding) + 1


def test_the_default_reduction_of_potential_field_is_part_of_the_digest() -> None:
    """Its default has changed, so a run that was started with the earlier one is not resumed with this one."""
    own = {"objective": {"metric_loss": "potential_field"}}
    written = [{"objective": {"metric_params": {"reduction": name}}} for name in ("per_pair", "mean")]
    assert digest(own) == digest(written[0]) != digest(written[1])
    other = {"objective": {"metric_loss": "multi_similarity"}}
    assert "reduction" not in str(parse_config(merged(other), where="test").deciding())
    assert parse_config(merged(own), where="test").deciding()["objective.metric_params.reduction"] == "per_pair"


def test_new_keys_at_their_defaults_leave_the_digest_of_older_checkpoints() -> None:
    """This digest stands in checkpoints of version 0.1.0: a new deciding key belongs in ADDED_KEYS."""
    earlier = {"objective": {"metric_loss": "multi_similarity"}}
    assert digest(earlier) == "e47de11772ebacd73f1f7f1ebfd3b64a260e651ca6da2993fe4187313379b9eb"
    assert digest({"objective": {"reward": "mine:reward"}}) != digest({})
    config = parse_config(BIRDS, where="test").model_dump()
    for key, default in ADDED_KEYS.items():
        section, _, name = key.partition(".")
        assert config[section][name] == default


def test_the_digest_is_equal_in_another_process() -> None:
    code = (
        "from saga_dist.config import parse_config;"
        "print(parse_config({'data': {'layout': 'birds', 'image_size': 80}}, where='x').digest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == digest({})


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    config = parse_config(merged({"objective": {"metric_params": {"alpha": 3, "reduction": "mean"}}}), where="test")
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.digest() == config.digest()


def test_differences_name_the_deciding_keys_only() -> None:
    mine = parse_config(BIRDS, where="test")
    theirs = parse_config(
        merged(
            {
                "run": {"seed": 4, "directory": "x"},
                "data": {"birds": {"seed": 12}},
                "runtime": {"kind": "serial"},
                "objective": {"metric_params": {"alpha": 3}},
            }
        ),
        where="test",
    )
    assert mine.differences(theirs) == [
        "data.birds.seed: 11 != 12",
        "objective.metric_params.alpha: not set (default 3.0) != 3",
        "run.seed: 0 != 4",
    ]
    assert mine.differences(mine) == []


def test_sections_are_frozen() -> None:
    config = parse_config(BIRDS, where="test")
    with pytest.raises(ValidationError):
        config.run.steps = 3  # type: ignore[misc]


def test_every_section_forbids_unknown_keys_and_is_strict() -> None:
    found = []

    def visit(model: type[Section]) -> None:
        found.append(model)
        for field in model.model_fields.values():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                visit(kind)

    visit(RunConfig)
    assert len(found) >= 13
    for model in found:
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["strict"]
        assert model.model_config["frozen"]
        assert model.__doc__


def test_parsing_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, saga_dist.config; print([m for m in ('torch', 'ray', 'transformers', 'vllm') if m in sys.modules])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == "[]"


def test_every_free_key_is_a_key() -> None:
    """A typo in the list would let a resume be refused for nothing."""
    config = parse_config(merged({}), where="test")
    keys = [f"{section}.{key}" for section, values in config.model_dump().items() for key in values]
    assert [free for free in FREE_KEYS if not any(key.startswith(free) for key in keys)] == []
    elsewhere = parse_config(
        merged({"rollout": {"workers": 3, "num_cpus": 0.5}, "replay": {"workers": 2}}), where="test"
    )
    assert elsewhere.digest() == config.digest()
    assert parse_config(merged({"rollout": {"max_staleness": 1}}), where="test").digest() != config.digest()


def test_a_budget_of_images_decides_the_steps() -> None:
    alone = ["objective.lambda_lm=0", "objective.lambda_kl=0", "data.batch_size=64", "run.steps=7"]
    config = load_config(ROOT / "configs" / "birds.toml", [*alone, "run.images=641"])
    assert config.run.steps == 11  # 10 batches of 64 are 640 images
    assert load_config(ROOT / "configs" / "birds.toml", [*alone, "run.images=640"]).run.steps == 10
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.digest() == config.digest()
    assert load_config(ROOT / "configs" / "birds.toml", alone).run.steps == 7
    verdict = ["objective.signal=verdict", "objective.lambda_kl=0", "data.batch_size=64", "run.images=640"]
    assert load_config(ROOT / "configs" / "birds.toml", verdict).run.steps == 10


def test_a_budget_of_images_needs_steps_of_one_size() -> None:
    with pytest.raises(ConfigError, match=r"run\.images = 640 with rollout\.max_micro_batches = 8.*varies"):
        load_config(ROOT / "configs" / "birds.toml", ["run.images=640", "rollout.max_micro_batches=8"])
    one = ["run.images=640", "rollout.max_micro_batches=1", "data.batch_size=64"]
    assert load_config(ROOT / "configs" / "birds.toml", one).run.steps == 10
