"""Records of a table's summary, the content of ``table.json`` and of the file of ``saga-dist evidence collect``."""

from __future__ import annotations

from pydantic import Field

from saga_dist.config import Section
from saga_dist.retrieval.metrics import PairedTest
from saga_dist.retrieval.results import TrainingFacts
from saga_dist.retrieval.run_comparison import RunComparison, Source, interval_remark
from saga_dist.sweep.table import PublishedFigures

SPLIT = "test"
"""Split whose results are summarised."""


class Figure(Section):
    """A metric over seeds, each value a share in [0, 1]."""

    mean: float
    """Mean over seeds."""
    sd: float | None
    """Sample standard deviation over seeds; None with one seed."""
    values: tuple[float, ...]
    """Value of each seed."""


class SourceTest(Section):
    """Interval and p-value of a difference of Recall@1, for one source of randomness."""

    low: float
    """Lower end of the 95 % interval of the difference, as a share."""
    high: float
    """Upper end of that interval."""
    p_value: float
    """Two-sided p-value, in [0, 1], not corrected for multiple tests."""

    @classmethod
    def of(cls, test: PairedTest) -> SourceTest:
        """Returns the record of a test."""
        return cls(low=test.low, high=test.high, p_value=test.p_value)


class PairedComparison(Section):
    """Comparison of Recall@1 with another variant on the same queries and common seeds, see ``compare_runs``.

    ``low``, ``high`` and ``p_value`` are those of the test with the wider interval, ``leads``. In files of version
    0.1.0 they are those over classes.
    """

    variant: str
    """Name of the other variant."""
    seeds: tuple[int, ...]
    """Seeds with which both variants are finished."""
    difference: float
    """Recall@1 minus the other variant's, as a share."""
    low: float
    """Lower end of the wider 95 % interval of the difference."""
    high: float
    """Upper end of that interval."""
    p_value: float
    """Two-sided p-value of the same test, in [0, 1], not corrected for multiple tests."""
    leads: Source = "classes"
    """Source of the wider interval."""
    over_classes: SourceTest | None = None
    """Test that swaps whole classes, with a bootstrap over classes, on hits averaged over the seeds; None in files of
    version 0.1.0."""
    over_seeds: SourceTest | None = None
    """Paired t-test over the seeds; None with one seed."""

    @classmethod
    def of(cls, variant: str, seeds: tuple[int, ...], found: RunComparison) -> PairedComparison:
        """Returns the record of a comparison with a variant over some seeds."""
        leading = found.leading
        return cls(
            variant=variant,
            seeds=seeds,
            difference=found.over_classes.difference,
            low=leading.low,
            high=leading.high,
            p_value=leading.p_value,
            leads=found.leads,
            over_classes=SourceTest.of(found.over_classes),
            over_seeds=None if found.over_seeds is None else SourceTest.of(found.over_seeds),
        )

    @property
    def class_test(self) -> SourceTest:
        """The test over classes, also from a file of version 0.1.0."""
        return self.over_classes or SourceTest(low=self.low, high=self.high, p_value=self.p_value)

    def remark(self, num_classes: int) -> str:
        """Returns the remark on few classes or seeds; empty where there are enough of both."""
        return interval_remark(num_classes=num_classes, num_seeds=len(self.seeds))


class SummaryRow(Section):
    """Summary of one variant."""

    name: str
    """Name of the variant."""
    label: str
    """Text of the variant in the table."""
    seeds: tuple[int, ...]
    """Seeds of the finished cells."""
    figures: dict[str, Figure]
    """Metrics by name, as in ``FIGURES``; empty without finished cells."""
    confidence_interval: tuple[float, float] | None
    """95 % interval of the mean Recall@1, the wider of the next two; None without finished cells."""
    class_interval: tuple[float, float] | None = None
    """95 % interval by a bootstrap over classes; None in files of version 0.1.0: ``confidence_interval``."""
    seed_interval: tuple[float, float] | None = None
    """Student's 95 % interval over the seeds, within [0, 1]; None with one seed."""
    paper: PublishedFigures | None
    """Published figures of the row; None when there are none."""
    choices: tuple[str, ...] = ()
    """Option chosen on validation classes for each seed; empty for a variant without options."""
    versus: tuple[PairedComparison, ...]
    """Comparisons with other variants with common finished seeds."""
    training: tuple[TrainingFacts, ...] = ()
    """Distinct facts about the training of the finished cells; empty in files of version 0.1.0."""

    @property
    def interval_over(self) -> Source:
        """Source of ``confidence_interval``."""
        widest = self.confidence_interval
        return "seeds" if widest == self.seed_interval and widest != self.class_interval else "classes"


class Summary(Section):
    """Summary of a table with its finished cells; the content of ``table.json``."""

    title: str
    """Title of the table."""
    split: str = SPLIT
    """Split of the results."""
    num_queries: int
    """Q, number of queries."""
    num_classes: int
    """C, number of classes among the queries."""
    num_unfindable: int = 0
    """Number of queries whose class has no other image; 0 in files of version 0.1.0."""
    rows: tuple[SummaryRow, ...]
    """One row per variant, in the order of the table."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Cells without results by name, with their progress or the reason of their failure."""

    def label(self, name: str) -> str:
        """Returns the text of a variant in the table from its name."""
        return next(row.label for row in self.rows if row.name == name)
