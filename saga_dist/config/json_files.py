"""A file that holds one record as JSON, read back or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from saga_dist.config import Section
from saga_dist.errors import DataError

SectionT = TypeVar("SectionT", bound=Section)


def load_json(path: Path, kind: type[SectionT], *, what: str, fix: str) -> SectionT:
    """Returns the record in a file.

    Args:
        path: of the file.
        kind: of the record.
        what: the user's word for it, with its article.
        fix: what the user can do.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:  # json first: it says in which line a file stops being JSON
        return kind.model_validate_json(json.dumps(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"not {what} ({reason})", where=str(path), fix=fix) from error
