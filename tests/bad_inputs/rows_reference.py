"""Mistakes in looking something up: configuration keys, metrics, and pages of the documentation."""

from __future__ import annotations

import webbrowser

from bad_inputs.row import BadInput, Workspace

from saga_dist.utils import shipped


def built_pages(workspace: Workspace) -> None:
    """Puts two built pages where the package of a checkout looks for them; no browser is opened."""
    workspace.patch.setattr(shipped, "_PACKAGE", workspace.folder / "saga_dist")
    workspace.patch.setattr(webbrowser, "open", lambda address: None)
    site = workspace.folder / "build" / "site"
    site.mkdir(parents=True)
    for name in ("index", "metrics", "own-images"):
        (site / f"{name}.html").touch()


def no_pages(workspace: Workspace) -> None:
    workspace.patch.setattr(shipped, "_PACKAGE", workspace.folder / "saga_dist")


ROWS = [
    BadInput(
        "a misspelt configuration key is looked up",
        "no such configuration key",
        "config objective.lamda_kl",
        ("config: no configuration key is called 'objective.lamda_kl'", "did you mean objective.lambda_kl"),
    ),
    BadInput(
        "a configuration key is looked up in another section",
        "no such configuration key",
        "config optimizer.steps",
        ("no configuration key is called 'optimizer.steps'", "expected section.key, a section, or a part of a name"),
    ),
    BadInput(
        "a misspelt last part of a configuration key is looked up",
        "no such configuration key",
        "config temprature",
        ("did you mean rollout.temperature?",),
    ),
    BadInput(
        "a configuration key that is like no other is looked up",
        "no such configuration key",
        "config zzz",
        ("no configuration key is called 'zzz'", "see `saga-dist config`"),
    ),
    BadInput(
        "a misspelt configuration key is looked up with a value",
        "no such configuration key",
        "config rollout.max_toknes=80",
        ("no configuration key is called 'rollout.max_toknes'", "did you mean rollout.max_tokens"),
    ),
    BadInput(
        "a configuration key is looked up in capital letters",
        "no such configuration key",
        "config RUN.SEED",
        ("no configuration key is called 'RUN.SEED'",),
    ),
    BadInput(
        "a metric is looked up among the configuration keys",
        "no such configuration key",
        "config rollout/reward_mean",
        ("names with a slash are metrics: `saga-dist metrics rollout/reward_mean`",),
    ),
    BadInput(
        "a misspelt metric is looked up",
        "no such metric",
        "metrics rollout/reward_maen",
        ("metrics: no metric is called 'rollout/reward_maen'", "did you mean rollout/reward_mean"),
    ),
    BadInput(
        "a metric is looked up with a dot for its slash",
        "no such metric",
        "metrics loss.grpo",
        ("no metric is called 'loss.grpo'", "did you mean loss/grpo"),
    ),
    BadInput(
        "a metric is looked up by a wildcard",
        "no such metric",
        "metrics 'staleness/*'",
        ("no metric is called 'staleness/*'", "expected a name of metrics.jsonl, or a part of one"),
    ),
    BadInput(
        "a member that a family of metrics does not have is looked up",
        "no such metric",
        "metrics importance/weight_pmax",
        ("no metric is called 'importance/weight_pmax'", "importance/weight_p{N}"),
    ),
    BadInput(
        "a configuration key is looked up among the metrics",
        "no such metric",
        "metrics prompt.vocabulary",
        ("this is a configuration key: `saga-dist config prompt.vocabulary`",),
    ),
    BadInput(
        "a metric that is like no other is looked up",
        "no such metric",
        "metrics zzz",
        ("no metric is called 'zzz'", "see `saga-dist metrics`"),
    ),
    BadInput(
        "a page that the documentation does not have is opened",
        "no such page",
        "docs install",
        ("there is no page 'install'; expected one of index, metrics, own-images",),
        built_pages,
    ),
    BadInput(
        "a misspelt page of the documentation is opened",
        "no such page",
        "docs own_images",
        ("there is no page 'own_images'", "did you mean own-images?"),
        built_pages,
    ),
    BadInput(
        "a page of the documentation is opened by the name of its file",
        "no such page",
        "docs metrics.md",
        ("there is no page 'metrics.md'", "did you mean metrics?"),
        built_pages,
    ),
    BadInput(
        "a path that leaves the folder of the documentation is opened as a page",
        "no such page",
        "docs ../../run",
        ("there is no page '../../run'",),
        built_pages,
    ),
    BadInput(
        "the documentation is opened where it was not built",
        "documentation not built",
        "docs",
        ("the documentation is not built; run `make docs`",),
        no_pages,
    ),
    BadInput(
        "the path of a page is asked for where the documentation was not built",
        "documentation not built",
        "docs metrics --path",
        ("the documentation is not built", "a wheel that `make wheel` made"),
        no_pages,
    ),
]
