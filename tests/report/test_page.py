"""The whole page of a run: everything is on it, hostile names and texts are inert, what is missing is explained."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from saga_dist.cli.main import app, main
from saga_dist.errors import ConfigError
from saga_dist.report import build
from saga_dist.report.build import Settings, report_page, rollouts_page
from saga_dist.report.sources import read_groups, run_labels
from saga_dist.retrieval.results import Results

HOSTILE_CLASS = "m <b>three<b>"


class Elements(HTMLParser):
    """Collects what a browser would see: tags with attributes, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.raw else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside].append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return report_page(run_dir, Settings(rows=4, attention=1)).html


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


def test_hostile_names_and_texts_make_no_element(elements: Elements) -> None:
    assert [attributes for tag, attributes in elements.tags if tag == "script"] == [
        {"type": "application/json", "id": "map-images"},
        {"type": "application/json", "id": "groups"},
        {},
    ]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert {tag for tag, _ in elements.tags}.isdisjoint({"iframe", "object", "embed", "form", "base", "b>three"})
    assert HOSTILE_CLASS in elements.text  # shown, as text
    assert "<i>trained</i>" in elements.text


def test_every_picture_is_in_the_file_and_decodes(elements: Elements) -> None:
    pictures = [attributes["src"] or "" for tag, attributes in elements.tags if tag == "img"]
    assert len(pictures) > 20
    for source in set(pictures):
        kind, _, content = source.partition(";base64,")
        assert kind in ("data:image/jpeg", "data:image/png")
        Image.open(io.BytesIO(base64.b64decode(content))).load()
    links = [value or "" for _, attributes in elements.tags for name, value in attributes.items() if name == "href"]
    assert links and all(link.startswith(("data:", "#")) for link in links)


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(elements: Elements) -> None:
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, content in (("script-src", elements.raw["script"][-1]), ("style-src", elements.raw["style"][0])):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert not [tag for tag, attributes in elements.tags if "style" in attributes]  # the policy would refuse it


def test_the_viewer_has_every_group_and_hostile_text_written_out(
    page: str, groups_of: Callable[[str], list[dict]]
) -> None:
    groups = groups_of(page)
    assert len(groups) == 12
    hostile = groups[4]["completions"]
    assert hostile[0]["text"].startswith("</script><script>")
    assert "\\x1b[31m\\u202e\\u2028" in hostile[0]["text"]
    assert hostile[1]["text"].endswith("(980,000 more characters)")
    assert hostile[2]["text"] == "a lone \\ud800 surrogate"
    assert groups[0]["overlays"] or groups[1]["overlays"]  # the teacher's attention of one group
    for group in groups:
        assert len(group["images"]) == 2
    assert not set("<>&") & set(page.split('id="groups">')[1].split("</script>")[0])


def test_results_curves_config_and_versions_are_there(elements: Elements) -> None:
    for words in ("50.0", "40.0–60.0", "Metric loss", "more metrics", "identical to the bit", '"lambda_kl": 1.0'):
        assert words in elements.text
    assert "torch" in elements.text


def test_a_running_run_without_model_or_images_has_a_report_that_says_so(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("model", "results.json"))
    config = json.loads((copy / "config.json").read_text())
    config["data"]["root"] = "/nowhere"
    config["model"]["path"] = "/nowhere"
    (copy / "config.json").write_text(json.dumps(config))
    made = report_page(copy, Settings())
    text = Elements(made.html).text
    assert "The run has not written its encoder (model/) yet." in text
    assert "The images cannot be read" in text
    assert "Completions are not split into tokens" in text
    assert "No results.json yet" in text
    assert "⟦image 1⟧" in made.html  # the prompt, without a chat format
    assert any("/nowhere" in line for line in made.lines)


def test_a_run_without_rollouts_has_a_report(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("rollouts"))
    text = Elements(report_page(copy, Settings()).html).text
    assert text.count("No recorded rollouts") == 2  # among the parts that are not on the page


def test_what_the_viewer_leaves_out_is_counted(run_dir: Path, groups_of: Callable[[str], list[dict]]) -> None:
    made = report_page(run_dir, Settings(groups=5))
    assert [group["step"] for group in groups_of(made.html)] == [1, 1, 2, 3, 3]
    assert "7 more are not on this page" in Elements(made.html).text
    assert made.lines[0] == "rollouts: 5 of 12 groups of 3 recorded steps"


def test_recorded_steps_that_were_not_read_are_counted_on_the_page(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "read_groups", lambda run, step=None: read_groups(run, step=step, limit=2))
    made = rollouts_page(run_dir, Settings(), step=None)
    assert "1 of 3 recorded steps, evenly spread, were not read." in Elements(made.html).text
    assert "rollouts: 1 of 3 recorded steps, evenly spread, were not read." in made.lines


def test_one_step_is_shown_whole(run_dir: Path, groups_of: Callable[[str], list[dict]]) -> None:
    made = rollouts_page(run_dir, Settings(groups=1), step=2)
    assert [group["step"] for group in groups_of(made.html)] == [2] * 4


def test_commands_write_pages_and_print_groups(run_dir: Path, tmp_path: Path) -> None:
    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "120"})
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    out = tmp_path / "page.html"
    assert "open it in a browser" in invoke("report", str(run_dir), "--out", str(out), "--rows", "2")
    assert out.read_text("utf-8").startswith("<!doctype html>")
    listing = invoke("rollouts", str(run_dir), "--step", "2")
    assert "s000002.m0.p00" in listing and "s000003" not in listing
    shown = invoke("rollouts", str(run_dir), "--pair", "s000002.m0.p00")
    assert "\x1b[31m" not in shown and "\\x1b[31m" in shown
    assert "\\ud800" in shown
    assert "no verdict" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "{here}"], "expected a run directory"),
        (["rollouts", "{run}", "--step", "7"], "no recording of step 7; expected a recorded step (1 to 3)"),
        (["rollouts", "{run}", "--step", "0"], "invalid value for '--step'"),
        (["rollouts", "{run}", "--pair", "s000002.m0.p99"], "no group of pair 's000002.m0.p99'"),
        (["rollouts", "{run}", "--pair", "x", "--out", "y"], "--pair with --out"),
        (["report", "{run}", "--out", "/nowhere/page.html"], "cannot be written"),
    ],
    ids=lambda part: part if isinstance(part, str) else part[0],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, run_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    filled = [part.format(here=tmp_path, run=run_dir) for part in arguments]
    monkeypatch.setattr(sys, "argv", ["saga-dist", *filled])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in error


def test_a_device_that_is_not_there_is_a_mistake(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="device = 'nonsense' cannot be used"):
        report_page(run_dir, Settings(device="nonsense"))


def test_queries_that_cannot_be_found_are_remarked_on_below_the_results(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("rollouts", "model"))
    assert "cannot be found" not in report_page(tmp_path / "run", Settings()).html
    path = tmp_path / "run" / "results.json"
    results = Results.load(path)
    lost = {"test": results.methods[0].splits["test"].model_copy(update={"num_unfindable": 5})}
    Results(methods=[results.methods[0].model_copy(update={"splits": lost})]).save(path)
    html = report_page(tmp_path / "run", Settings()).html
    assert html.count("test: 5 of 12 queries cannot be found and count as misses") == 1


def test_a_run_to_which_the_mllm_contributed_nothing_has_a_remark_in_its_head(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("rollouts", "model"))
    assert "the frozen MLLM contributed" not in report_page(tmp_path / "run", Settings()).html
    idle = {"rollout/groups": 4.0, "rollout/contributing_share": 0.0, "rollout/truncated_share": 1.0}
    rows = [json.dumps({"step": step, **idle}) for step in (1, 2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    found = Elements(report_page(tmp_path / "run", Settings()).html)
    assert "the frozen MLLM contributed to 0 of 2 steps: completions are cut off at rollout.max_tokens" in found.text


def headings(elements: Elements) -> set[str | None]:
    return {attributes.get("id") for tag, attributes in elements.tags if tag == "section"}


def test_what_a_run_lacks_has_no_heading_and_no_link(run_dir: Path, tmp_path: Path) -> None:
    bare = tmp_path / "run"
    shutil.copytree(run_dir, bare, ignore=shutil.ignore_patterns("rollouts", "model", "results.json", "metrics.jsonl"))
    found = Elements(report_page(bare, Settings()).html)
    assert headings(found) == {"setup"}
    assert [attributes["href"] for tag, attributes in found.tags if tag == "a"] == ["#setup"]
    for part in ("Results", "Curves", "Retrieval", "Evidence", "Attention", "Attributes", "Rollouts"):
        assert re.search(rf"{part}\n?[^\n]+\.", found.text.split("Not on this page")[1])  # each with its reason


def test_a_whole_run_has_every_part_but_the_evidence(elements: Elements) -> None:
    assert headings(elements) == {"results", "curves", "retrieval", "attention", "attributes", "rollouts", "setup"}


def test_several_runs_share_curves_and_results(run_dir: Path, tmp_path: Path) -> None:
    kept = shutil.ignore_patterns("rollouts", "model")
    for name in ("first/seed_0", "second/seed_0"):
        shutil.copytree(run_dir, tmp_path / name, ignore=kept)
    config = json.loads((tmp_path / "second/seed_0/config.json").read_text())
    config["objective"]["lambda_dml"] = 0.125
    (tmp_path / "second/seed_0/config.json").write_text(json.dumps(config))
    html = report_page(tmp_path / "first/seed_0", Settings(), [tmp_path / "second/seed_0"]).html
    assert html.count('data-label="first/seed_0"') == html.count('data-label="second/seed_0"') == 3  # one a metric
    results = html.split('<section id="results">')[1].split("</section>")[0]
    assert results.count('<td class="words">second/seed_0</td>') == 1
    assert re.search(r"<td>objective.lambda_dml</td><td>1.0</td><td>0.125</td>", html)
    assert "<td>objective.lambda_kl</td>" not in html


def test_runs_are_called_by_what_tells_them_apart() -> None:
    assert run_labels([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert run_labels([Path("/a/b/seed_0"), Path("/a/c/seed_0")]) == ["b/seed_0", "c/seed_0"]
    assert run_labels([Path("/a/b/seed_0")]) == ["seed_0"]


def test_other_methods_are_level_lines_in_the_validation_chart(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("rollouts", "model"))
    path = tmp_path / "run" / "results.json"
    trained = Results.load(path).methods[0]
    before = trained.splits["test"].model_copy(update={"recall_at_1": 0.25})
    pretrained = trained.model_copy(update={"name": "pre-trained", "splits": {"val": before}})
    Results(methods=[pretrained, trained]).save(path)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "validation/recall_at_1": 0.5}\n')
    html = report_page(tmp_path / "run", Settings()).html
    assert '<li class="reference">pre-trained <b>25.0 %</b></li>' in html


def test_the_viewer_has_the_prompt_and_the_attributes_side_by_side(
    page: str, groups_of: Callable[[str], list[dict]]
) -> None:
    data = json.loads(page.split('id="groups">')[1].split("</script>")[0])
    assert "⟦image 1⟧" in data["prompt"] and "same_species" in data["prompt"]
    rows = {row["name"]: row for row in groups_of(page)[3]["attributes"]}
    assert list(rows) == ["bill", "crown", "breast", "wing", "tail", "legs"]
    assert rows["breast"]["a"] == {"values": ["cream", "cream", "cream", None], "common": "cream", "agree": 3}
    assert rows["breast"]["b"]["values"] == ["cream", "cream", "maroon", None]
