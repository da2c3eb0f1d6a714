"""Runs a program on a terminal of 80 columns (a pseudo-terminal) and returns what its user sees in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

COLUMNS, ROWS = 80, 24
_TOKEN = re.compile(r"\x1b\[(\?)?(\d*)(?:;\d+)*([A-Za-z])|(.)", re.DOTALL)


def seen_on_a_terminal(code: str) -> list[str]:
    """Returns the lines of the screen, scrolled ones included, after ``code`` ran in a Python of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env={**environment, "TERM": "xterm"}
    )
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(master, 65536):
            written += chunk
    except OSError:  # Linux says so when the last writer has closed the terminal
        pass
    finally:
        os.close(master)
    assert process.wait(timeout=60) == 0, written.decode()
    return screen(written.decode())


def screen(written: str) -> list[str]:
    """Returns the lines that a terminal shows for what was written to it: cursor up, erase line, wrap, line feed."""
    lines, row, column = [[" "] * COLUMNS], 0, 0
    for private, number, command, character in _TOKEN.findall(written):
        if command == "A" and not private:
            row = max(0, row - int(number or 1))
        elif command == "K":
            lines[row] = [" "] * COLUMNS
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
        elif character:
            if column == COLUMNS:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([" "] * COLUMNS)
            lines[row][column] = character
            column += 1
        while len(lines) <= row:
            lines.append([" "] * COLUMNS)
    return ["".join(line).rstrip() for line in lines]
