"""The process of one section: ``python -m saga_dist.diagnostics.gpu_check.child FUNCTION ARGUMENT``.

It writes one JSON object with ``results``, ``skipped`` or ``error`` to its standard output, and nothing else: what is
printed meanwhile, by libraries in other languages too, goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from saga_dist.diagnostics.gpu_check.skipping import SectionSkipped
from saga_dist.errors import SagaError
from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.registry import import_object, one_line


def answer(function: str, argument: str) -> dict[str, Any]:
    """Returns what a function returned or raised, as a JSON object with one key.

    Args:
        function: import path ``package.module:object``.
        argument: argument of the function.
    """
    try:
        results = import_object(function, key="section")(argument)
        json.dumps(results, allow_nan=False)
    except SectionSkipped as skipped:
        return {"skipped": str(skipped)}
    except Exception as error:  # noqa: BLE001 - whatever fails in a section is the answer of that section
        traceback.print_exc()
        return {"error": str(error) if isinstance(error, SagaError) else one_line(error)}
    return {"results": results}


def main() -> None:
    """Writes the answer of the function that the command line names, and ends the process."""
    channel = os.dup(1)
    os.dup2(2, 1)
    quiet_libraries()
    content = json.dumps(answer(*sys.argv[1:3]))
    os.write(channel, content.encode())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # threads of a library may keep an interpreter from ending, and the answer would be lost at the cap


if __name__ == "__main__":
    main()
