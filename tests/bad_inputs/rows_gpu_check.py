"""Mistakes in the check of a GPU: sections, sizes, minutes and folders, and files of rates that are no such files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.row import BadInput, Workspace

from saga_dist.diagnostics.gpu_check import runner
from saga_dist.diagnostics.gpu_check.isolation import Outcome
from saga_dist.estimate.rates import CARDS, card_rates, read_rates

GIVEN = {"value": 1e14, "source": "measured: somewhere"}


def without_gpu(workspace: Workspace) -> None:
    workspace.patch.setenv("CUDA_VISIBLE_DEVICES", "")


def file_in_its_place(workspace: Workspace) -> None:
    (workspace.folder / "out").write_text("mine")


def earlier_check(workspace: Workspace) -> None:
    (workspace.folder / "out").mkdir()
    (workspace.folder / "out" / "results.jsonl").touch()


def unusable_gpu(workspace: Workspace) -> Any:
    """Asks for the size of a GPU that torch does not see."""
    workspace.patch.setattr(runner, "visible_gpus", lambda: 1)
    workspace.patch.setattr(runner, "run_isolated", lambda *_, **__: Outcome(1.0, {"bytes": 0}))
    return runner.choose_size("auto", workspace.folder)


def rates(content: Any) -> Callable[[Workspace], Any]:
    """Returns an act: reads a file of rates with this content."""

    def act(workspace: Workspace) -> Any:
        file: Path = workspace.folder / "rates.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_rates(file, card_rates(CARDS["h200"], images=64))

    return act


ROWS = [
    BadInput(
        "a misspelt section of the GPU check",
        "sections of the GPU check",
        "check-gpu --sections replai",
        ("--sections: no section 'replai'", "environment, gradients, replay", "did you mean replay?"),
    ),
    BadInput(
        "a section of the GPU check that is like no other",
        "sections of the GPU check",
        "check-gpu --sections xyz",
        ("--sections: no section 'xyz'; expected some of environment", "separated by commas"),
    ),
    BadInput(
        "sections of the GPU check with a comma too many",
        "sections of the GPU check",
        "check-gpu --sections replay,,start",
        ("--sections: no section ''",),
    ),
    BadInput(
        "sections of the GPU check separated by semicolons",
        "sections of the GPU check",
        "check-gpu --sections 'replay;start'",
        ("--sections: no section 'replay;start'", "separated by commas"),
    ),
    BadInput(
        "a section of the GPU check named twice",
        "sections of the GPU check",
        "check-gpu --sections start,replay,start",
        ("--sections: start is named twice; expected each section once",),
    ),
    BadInput(
        "a section of the GPU check in capitals",
        "sections of the GPU check",
        "check-gpu --sections Replay",
        ("--sections: no section 'Replay'", "did you mean replay?"),
    ),
    BadInput(
        "the rates as a section of the GPU check",
        "sections of the GPU check",
        "check-gpu --sections rates",
        ("--sections: no section 'rates'",),
    ),
    BadInput(
        "a size of the GPU check that is not there",
        "size of the GPU check",
        "check-gpu --size 32b",
        ("--size: no size '32b'; expected auto, tiny, 2b, 4b, 8b",),
    ),
    BadInput(
        "a size of the GPU check in capitals",
        "size of the GPU check",
        "check-gpu --size 8B",
        ("--size: no size '8B'",),
    ),
    BadInput(
        "a model's name as the size of the GPU check",
        "size of the GPU check",
        "check-gpu --size Qwen/Qwen3-VL-8B-Instruct",
        ("--size: no size 'Qwen/Qwen3-VL-8B-Instruct'",),
    ),
    BadInput(
        "the GPU check of a released size without a GPU",
        "size of the GPU check",
        "check-gpu --size 2b",
        ("--size: 2b, the sizes of Qwen3-VL-2B-Instruct, without a GPU", "leave --size out for the tiny model"),
        without_gpu,
    ),
    BadInput(
        "a GPU that torch cannot use",
        "size of the GPU check",
        unusable_gpu,
        ("check-gpu: there is a GPU, and torch cannot use it", "pip install 'saga-dist[gpu]'", "--size tiny"),
    ),
    BadInput(
        "a GPU check of no minutes",
        "minutes of the GPU check",
        "check-gpu --minutes 0",
        ("saga-dist check-gpu: invalid value for '--minutes'", "0.1"),
    ),
    BadInput(
        "a GPU check of negative minutes",
        "minutes of the GPU check",
        "check-gpu --minutes -9",
        ("saga-dist check-gpu: invalid value for '--minutes'",),
    ),
    BadInput(
        "minutes of the GPU check in words",
        "minutes of the GPU check",
        "check-gpu --minutes nine",
        ("saga-dist check-gpu: invalid value for '--minutes'", "unable to parse string as a number"),
    ),
    BadInput(
        "a configuration given to the GPU check",
        "minutes of the GPU check",
        "check-gpu configs/cub.toml",
        ("saga-dist check-gpu: got unexpected extra argument",),
    ),
    BadInput(
        "a GPU check into the folder of another one",
        "folder of the GPU check",
        "check-gpu --out out",
        ("out: there is something already; expected a new folder; choose another --out",),
        earlier_check,
    ),
    BadInput(
        "a GPU check into a file",
        "folder of the GPU check",
        "check-gpu --out out",
        ("out: there is something already", "choose another --out"),
        file_in_its_place,
    ),
    BadInput(
        "a GPU check below a file",
        "folder of the GPU check",
        "check-gpu --out out/here",
        ("out/here", "a part of its path is a file", "choose another --out"),
        file_in_its_place,
    ),
    BadInput(
        "measured rates as a list",
        "file of rates",
        rates([GIVEN]),
        ("rates.json: holds something else", "estimate --calibrate --json writes"),
    ),
    BadInput(
        "the results of a GPU check as measured rates",
        "file of rates",
        rates('{"section": "replay", "seconds": 1}\n{"section": "start", "seconds": 2}\n'),
        ("rates.json: holds something else", "JSONDecodeError"),
    ),
    BadInput(
        "a result of a GPU check as measured rates",
        "file of rates",
        rates({"section": "replay", "results": {"flops_per_s": 1e14}}),
        ("rates.json: holds something else (KeyError('rates'))",),
    ),
    BadInput(
        "a measured rate without its source",
        "file of rates",
        rates({"rates": {"replay": {"value": 1e14}}}),
        ("rates.json: holds something else (KeyError('source'))",),
    ),
    BadInput(
        "a measured rate that estimates do not have",
        "file of rates",
        rates({"rates": {"replays": GIVEN}}),
        ("rates.json: rate 'replays'", "replay, rollout_tokens"),
    ),
    BadInput(
        "a negative measured rate",
        "file of rates",
        rates({"rates": {"replay": {**GIVEN, "value": -1.0}}}),
        ("rates.json: rate 'replay': -1, -1 to -1; expected low <= value <= high, above 0",),
    ),
    BadInput(
        "an infinite measured rate",
        "file of rates",
        rates('{"rates": {"replay": {"value": Infinity, "source": "measured"}}}'),
        ("rates.json: rate 'replay': inf, inf to inf; expected low <= value <= high, above 0",),
    ),
    BadInput(
        "a measured rate in words",
        "file of rates",
        rates({"rates": {"replay": {**GIVEN, "value": "fast"}}}),
        ("rates.json: holds something else", "could not convert string to float"),
    ),
]
