"""Holds that the package writes files only through ``utils/atomic_io.py`` and ``utils/output_files.py``.

There every error of the operating system becomes one line with path and fix. A library that writes by itself is called
within ``with output_errors(...)``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "saga_dist"
DOOR = ("utils/atomic_io.py", "utils/output_files.py", "utils/directory_owner.py")
WRITERS = {
    *("write_text", "write_bytes", "mkdir", "makedirs", "touch", "symlink_to", "hardlink_to"),
    *("copyfile", "copy", "copy2", "copytree", "move"),
    *("save_file", "savez", "savez_compressed", "save_pretrained", "write_index", "write_feather", "write_table"),
    *("OSFile", "ParquetWriter", "SummaryWriter"),
}
"""Names of functions and methods that write; ``copy`` and ``write_table`` only of a module (shutil, parquet)."""
OF_A_MODULE = {"copy": "shutil", "move": "shutil", "write_table": "pq"}
EXCEPTIONS = {
    ("bench/common.py", "write_text"): "a control file of the kernel below /proc",
    ("models/weight_digest.py", "mkdir"): "a private folder of remembered digests; without it nothing is remembered",
    ("models/families/checkpoint_family.py", "save_pretrained"): "Encoder.save calls it within output_errors",
    ("runtime/ray/fault_plan.py", "touch"): "a marker of a planned fault, which must fail when it exists",
    ("retrieval/first_hits.py", "savez_compressed"): "writes to memory",
    ("retrieval/tables.py", "ParquetWriter"): "writes to a file that replaced_file opened",
}


def writes(node: ast.AST) -> str:
    """Name of what writes when the node is such a call; else empty."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if name in ("open", "fdopen"):
        values = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        flags = [value.attr for part in values for value in ast.walk(part) if isinstance(value, ast.Attribute)]
        opens = any(re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes)
        return name if opens or {"O_WRONLY", "O_RDWR", "O_CREAT"} & set(flags) else ""
    if name not in WRITERS:
        return ""
    if name in OF_A_MODULE:
        owner = function.value if isinstance(function, ast.Attribute) else None
        return name if isinstance(owner, ast.Name) and owner.id == OF_A_MODULE[name] else ""
    return name


def strangers(tree: ast.AST, *, mapped: bool = False) -> list[tuple[int, str]]:
    """Line and name of every call that writes outside of a ``with output_errors(...)``."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = mapped or (
            isinstance(node, ast.With)
            and any(
                getattr(getattr(item.context_expr, "func", None), "id", "") == "output_errors" for item in node.items
            )
        )
        if not inside and (name := writes(node)):
            found.append((node.lineno, name))  # type: ignore[attr-defined]
        found += strangers(node, mapped=inside)
    return found


def test_files_are_written_through_one_door() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name): line
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in DOOR
        for line, name in strangers(ast.parse(path.read_text("utf-8")))
    }
    unknown = {f"{file}:{line} calls {name}" for (file, name), line in found.items() if (file, name) not in EXCEPTIONS}
    assert unknown == set(), "write through utils/output_files.py or utils/atomic_io.py"
    assert EXCEPTIONS.keys() <= found.keys(), "an exception that is not needed any more"


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='r+')",
        "path.write_text('x')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "shutil.copyfile(a, b)",
        "shutil.copy(a, b)",
        "save_file(tensors, path)",
        "with other(path):\n    path.write_bytes(b'')",
    ],
)
def test_a_call_that_writes_is_found(code: str) -> None:
    assert len(strangers(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "open(path)",
        "path.open('rb')",
        "os.open(path, os.O_RDONLY)",
        "tree.copy(a)",
        "with output_errors(path):\n    model.save_pretrained(path)",
    ],
)
def test_other_calls_are_not(code: str) -> None:
    assert strangers(ast.parse(code)) == []
