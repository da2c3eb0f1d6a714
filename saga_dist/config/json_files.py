"""Loads one record from a JSON file; an error is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from saga_dist.config import Section
from saga_dist.errors import DataError

SectionT = TypeVar("SectionT", bound=Section)


def load_json(path: Path, kind: type[SectionT], *, what: str, fix: str) -> SectionT:
    """Returns the record in a JSON file.

    Args:
        path: the file.
        kind: class of the record.
        what: name of the record for the error message, with its article.
        fix: advice for the error message.

    Raises:
        DataError: the file cannot be read, is not JSON, or holds another record.
    """
    try:  # json first, because its errors name the line of the file
        return kind.model_validate_json(json.dumps(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"not {what} ({reason})", where=str(path), fix=fix) from error
