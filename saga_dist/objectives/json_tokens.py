"""Tokens of JSON-like text that a model generated: marks, strings in any quotes, and bare words.

A token is a match of ``TOKEN``. White space lies between tokens, and so does markdown emphasis next to a string or a
mark (``**"key"**:``); emphasis next to a word is a part of the word (``**yes**``).

Every alternative takes its characters for good (possessive quantifiers), and a string without a closing quote takes the
whole rest of the text, so the tokens of a text are found in time linear in its length.
"""

from __future__ import annotations

import json
import re

QUOTES = "\"'“”„‟‘’‚‛«»＂"
"""Characters that may open or close a string."""
_EMPHASIS = "*_`"
# In '...' an apostrophe is a letter, so a closing quote is one before a mark, a string, a line's end or the text's end.
_LOOKS_CLOSING = rf"""(?=\s*+(?:[,:}}\]{QUOTES}]|[{_EMPHASIS}]++\s*+[,:}}\]]|\Z)|[ \t]*+[\r\n])"""
_CLOSED_STRING = rf"""
    "(?:[^"\\]++|\\.)*+"
  | [“”„‟«»＂](?:[^"“”‟«»＂\\]++|\\.)*+["“”‟«»＂]
  | ['‘’‚‛](?:[^'‘’‛\\]++|\\.|['‘’‛](?!{_LOOKS_CLOSING}))*+['‘’‛]
"""
TOKEN = re.compile(
    rf"""
    (?P<mark>[{{}}\[\],:])
  | (?P<string>{_CLOSED_STRING})
  | (?P<cut>[{QUOTES}].*+)
  | [{_EMPHASIS}]++(?=[\s{{}}\[\],:{QUOTES}]|\Z)
  | (?P<word>[^\s{{}}\[\],:]++)
    """,
    re.DOTALL | re.VERBOSE,
)
"""One token. The last group is ``mark``, ``string``, ``word``, ``cut`` (a string without its closing quote, up to the
end of the text), or None for emphasis."""
_PLAIN_STRING = r"""("[^"\\]*+"|'[^'‘’‛\\]*+'|[“”„][^"“”‟«»＂\\]*+["“”])"""
PLAIN_MEMBER = re.compile(rf"""\s*+{_PLAIN_STRING}\s*+:\s*+{_PLAIN_STRING}\s*+(?:,|(?=\}}))""")
"""A member of two strings without escapes, with its comma, which is read at once because most members are of this
kind."""
MISSING_LAST_QUOTE = re.compile(
    rf"""[{QUOTES}]\s*+[\w]{{1,64}}+[.!]?+[{_EMPHASIS}]*+(?=\s*+\}}[\s}}{_EMPHASIS}]*+\Z)"""
)
"""A string of one word without its closing quote, after which nothing but closing braces and a fence stand."""
OBJECT_START = re.compile(rf"""\{{(?=\s*+(?:[{QUOTES}{_EMPHASIS}]|[^\W\d][\w \-]{{0,63}}+[{QUOTES}{_EMPHASIS}]*+:))""")
"""A brace that precedes a key. Prose around an answer may have other braces."""
KEY_START = re.compile(rf"""\s*+[{_EMPHASIS}]*+(?:{_CLOSED_STRING})[{_EMPHASIS}]*+\s*+:""", re.DOTALL | re.VERBOSE)
"""A quoted key with its colon, without a brace before it."""
GOES_ON = re.compile(rf"""\s*+,(?=\s*+[{QUOTES}])""")
"""A comma and a quote after an object, which goes on although a brace has closed it."""


def content(literal: str) -> str:
    """Returns the text inside a string in any quotes; a literal without quotes on both sides is returned as it is.

    Escapes of a JSON string are decoded; those of other strings, and invalid ones, are kept.
    """
    if literal[:1] == '"' and "\\" in literal:
        try:
            return str(json.loads(literal, strict=False))
        except ValueError:
            return literal
    return literal[1:-1] if len(literal) > 1 and literal[0] in QUOTES and literal[-1] in QUOTES else literal
