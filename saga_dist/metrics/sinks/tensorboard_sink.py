"""TensorBoard: event files in the run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from saga_dist.metrics.group_words import GroupSample, completion_lines, group_in_words
from saga_dist.utils.output_errors import output_errors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from saga_dist.types import ScoredGroup, StepResult


class TensorBoardSink:
    """Event files in ``RUN/tensorboard``.

    A resumed run writes a new file whose first record makes TensorBoard drop the steps after the checkpoint.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def open(self, *, after_step: int) -> None:
        """Opens a new event file; TensorBoard drops the steps after ``after_step`` of earlier files."""
        from torch.utils.tensorboard import SummaryWriter

        self._wait_for_a_later_name()
        with output_errors(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=after_step + 1)

    def _wait_for_a_later_name(self) -> None:
        """Waits until the second of the newest event file is over.

        TensorBoard reads event files in the order of their names, which begin with the second of their creation. A file
        of the same second may have the smaller name (pid and counter are not padded), and would be read first.
        """
        names = [path.name for path in self._folder.glob("events.out.tfevents.*")]
        seconds = [int(name.split(".")[3]) for name in names if name.split(".")[3].isdigit()]
        if seconds and max(seconds) == int(time.time()):
            time.sleep(1 - time.time() % 1)

    def write(self, result: StepResult) -> None:
        """Writes one scalar per metric and flushes the file."""
        assert self._writer is not None
        with output_errors(self._folder):
            for name, value in result.metrics.items():
                self._writer.add_scalar(name, value, result.step)
            self._writer.flush()

    def write_group(self, sample: GroupSample) -> None:
        """Writes the group as text ``group/completions`` and its images as ``group/image_a`` and ``group/image_b``."""
        assert self._writer is not None
        with output_errors(self._folder):
            self._writer.add_text("group/completions", _markdown(sample.group), sample.step)
            for name, image in zip("ab", sample.images, strict=True):
                self._writer.add_image(f"group/image_{name}", image, sample.step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


def _markdown(group: ScoredGroup) -> str:
    """Returns the group as Markdown; untrusted text is indented by four columns, which shows it as it is."""
    parts = [group_in_words(group)]
    for head, text in completion_lines(group):
        parts += [f"**{head}**", "\n".join(f"    {line}" for line in text.split("\n"))]
    return "\n\n".join(parts)
