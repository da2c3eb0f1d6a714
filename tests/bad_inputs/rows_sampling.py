"""Sampling parameters that an engine does not take, and tables of which one cell is wrong."""

from __future__ import annotations

from bad_inputs.row import BadInput, Workspace

DRY_RUN = "train run.toml --dry-run rollout.engine=vllm"
TABLE = """
title = "Two rows"
config = "run.toml"
seeds = [0, 1]
baseline = "metric"
[[variant]]
name = "metric"
label = "metric loss"
set = ["objective.lambda_lm=0", "objective.lambda_kl=0"]
[[variant]]
name = "saga"
label = "SAGA"
set = [{wrong}]
"""


def write(workspace: Workspace) -> None:
    workspace.write_config()


VLLM = [
    BadInput(name, "sampling of vLLM", act, says, write)
    for name, act, says in (
        (
            "a temperature above vLLM's range",
            f"{DRY_RUN} rollout.temperature=2.5",
            ('rollout.engine = "vllm"', "rollout.temperature = 2.5", "expected 0.01 to 2", "set rollout.temperature"),
        ),
        (
            "a temperature that vLLM would raise",
            f"{DRY_RUN} rollout.temperature=0.001",
            ("rollout.temperature = 0.001", "expected 0.01 to 2"),
        ),
        (
            "more completions of a pair than vLLM takes",
            f"{DRY_RUN} rollout.group_size=20000",
            ("rollout.group_size = 20000", "at most 16384", "VLLM_MAX_N_SEQUENCES"),
        ),
        (
            "a temperature above vLLM's range for verdicts only",
            f"{DRY_RUN} objective.lambda_lm=0 objective.lambda_kl=0 evaluation.verdict_pairs=2 rollout.temperature=3",
            ("rollout.temperature = 3",),
        ),
        (
            "a temperature above vLLM's range in a training",
            "train run.toml rollout.engine=vllm rollout.temperature=2.01",
            ("rollout.temperature = 2.01",),
        ),
        (
            "a temperature above vLLM's range in a recording of rollouts",
            "rollout run.toml rollout.engine=vllm rollout.temperature=4",
            ("rollout.temperature = 4",),
        ),
        (
            "a temperature above vLLM's range in a demo",
            "demo --runtime serial rollout.temperature=5 --run-dir out",
            ("rollout.temperature = 5",),
        ),
    )
]
ANY_ENGINE = [
    BadInput(name, "sampling parameter out of range", f"train run.toml --dry-run {override}", says, write)
    for name, override, says in (
        ("no temperature", "rollout.temperature=0", ("rollout.temperature", "greater than 0")),
        ("a temperature without end", "rollout.temperature=inf", ("rollout.temperature", "finite")),
        ("no probability mass", "rollout.top_p=0", ("rollout.top_p", "greater than 0")),
        ("more than all probability mass", "rollout.top_p=1.5", ("rollout.top_p", "less than or equal to 1")),
        ("completions of no token", "rollout.max_tokens=0", ("rollout.max_tokens", "greater than or equal to 1")),
        ("a group of one completion", "rollout.group_size=1", ("rollout.group_size", "greater than or equal to 2")),
        ("a seed below zero", "run.seed=-1", ("run.seed", "greater than or equal to 0")),
    )
]


def table_with(*wrong: str) -> object:
    """Returns what writes a table whose second variant has these settings."""

    def prepare(workspace: Workspace) -> None:
        workspace.write_config()
        settings = ", ".join(f'"{setting}"' for setting in wrong)
        (workspace.folder / "table.toml").write_text(TABLE.format(wrong=settings))

    return prepare


CELLS = [
    BadInput(
        f"a cell with {name}", "a cell of a table", "sweep table.toml --out out", ("saga/seed_0: ", *says), prepare
    )
    for name, says, prepare in (
        ("an unknown key", ("run.stepps",), table_with("run.stepps=3")),
        ("a value out of range", ("rollout.top_p",), table_with("rollout.top_p=2")),
        ("sections that contradict each other", ("pairs_per_batch = 10",), table_with("rollout.pairs_per_batch=10")),
        ("more images of a class than there are", ("3 images",), table_with("data.images_per_class=4")),
        ("a layer that the model does not have", ("kl_layer = 9",), table_with("objective.kl_layer=9")),
        ("a vocabulary that does not exist", ("whales",), table_with("prompt.vocabulary=whales")),
        (
            "a temperature above vLLM's range",
            ("rollout.temperature = 3",),
            table_with("rollout.engine=vllm", "rollout.temperature=3"),
        ),
        ("two mistakes", ("2 mistakes",), table_with("objective.kl_layer=9", "prompt.vocabulary=whales")),
    )
]
ROWS = [*VLLM, *ANY_ENGINE, *CELLS]
