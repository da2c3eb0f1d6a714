"""The charts of one and of several runs: every metric has one, in the words of the registry."""

from __future__ import annotations

from saga_dist.metrics.registry import all_metrics
from saga_dist.report.line_chart import LegendEntry, Reference
from saga_dist.report.run_charts import MAIN, UNREGISTERED, RunRows, run_charts

ROWS = [
    {"step": 1, "loss/dml": 0.5, "made/up": 2.0, "rollout_pool/idle_share": 0.1, "step/replay_s": 1.0},
    {"step": 1, "validation/recall_at_1": 0.2},
    {"step": 2, "loss/dml": 0.4, "staleness/versions_mean": 1.0, "step/encode_s": 0.5},
]


def test_every_metric_has_a_chart_with_its_title_from_the_registry() -> None:
    main, groups = run_charts([RunRows("run", ROWS)], {})
    assert [chart.title for chart in main] == [
        "Validation Recall@1", "Metric loss L_DML", "Time of a step", "Mean staleness"
    ]  # fmt: skip
    assert [(group.title, [chart.title for chart in group.charts]) for group in groups] == [
        ("Worker pools", ["Idle share of workers"]),
        (UNREGISTERED, ["made/up"]),
    ]
    assert [entry.label for entry in main[2].legend] == ["encoding", "replay"]
    assert main[1].legend == [LegendEntry("k0", "Metric loss L_DML", "0.4")]
    assert [about.name for about in main[1].about] == ["loss/dml"] and groups[1].charts[0].about == []
    assert "share" in main[0].svg and "seconds" in main[2].svg  # units


def test_several_runs_have_a_line_each_in_a_chart_for_each_metric() -> None:
    other = [{"step": 1, "loss/dml": 0.9, "step/replay_s": 2.0}]
    main, _ = run_charts([RunRows("a", ROWS), RunRows("b", other)], {})
    assert {chart.title: [entry.label for entry in chart.legend] for chart in main} == {
        "Validation Recall@1": ["a"],
        "Metric loss L_DML": ["a", "b"],
        "Time of a step: encoding": ["a"],
        "Time of a step: replay": ["a", "b"],
        "Mean staleness": ["a"],
    }


def test_metrics_of_one_heading_that_would_flatten_each_other_are_drawn_apart() -> None:
    def titles(first: float, *second: float) -> list[str]:
        rows = [{"step": 1, "gradient/total_norm": first, "gradient/proxies_norm": value} for value in second]
        return [chart.title for chart in run_charts([RunRows("run", rows)], {})[0]]

    heading = "Gradient norm before clipping"
    assert titles(3.0, 2.0, 0.0) == [heading]
    assert titles(300.0, 2.0, 1.0) == [heading]  # on a logarithmic axis
    assert titles(3.0, 0.0, 0.0) == [heading]
    assert titles(60.0, 2.0, 0.0) == [f"{heading}: encoder and pooler", f"{heading}: proxies"]


def test_level_lines_are_in_the_chart_of_their_metric() -> None:
    main, _ = run_charts([RunRows("run", ROWS)], {"validation/recall_at_1": [Reference("pre-trained", 0.1)]})
    assert [entry.label for entry in main[0].legend] == ["Validation Recall@1", "pre-trained"]
    assert "reference" not in main[1].svg


def test_main_headings_are_those_of_the_registry() -> None:
    headings = {title.partition(": ")[0] for metric in all_metrics() for title in metric.titles}
    assert set(MAIN) <= headings
