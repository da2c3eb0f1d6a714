"""Equations: fenced blocks of the language ``math`` become MathML, which browsers draw without scripts or fonts."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def with_equations(markdown: str) -> str:
    """Returns Markdown whose blocks of LaTeX are MathML."""
    return _BLOCK.sub(lambda block: f'<div class="equation">{convert(block[1], display="block")}</div>', markdown)
