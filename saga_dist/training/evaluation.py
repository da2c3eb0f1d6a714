"""Evaluation on classes that were not in training: retrieval, verdicts of the frozen MLLM, linear probes.

Model selection uses validation classes only; the test classes are used once, for the selected step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.data.sampling import evaluation_pairs
from saga_dist.objectives.reward import json_is_valid
from saga_dist.protocols import Embeddings, Learner, Runtime
from saga_dist.retrieval.clusters import nmi
from saga_dist.retrieval.first_hits import LARGEST_K, FirstHits
from saga_dist.retrieval.metrics import clustered_interval, ranking_metrics, recall_at_k
from saga_dist.retrieval.probe import linear_probe_accuracy
from saga_dist.retrieval.results import MethodResult, SplitResult, VerdictResult
from saga_dist.types import RolloutTask, Sampling
from saga_dist.utils.rng import counter_seed
from saga_dist.utils.stages import stage
from saga_dist.workers.serial_pool import run_all

if TYPE_CHECKING:
    from saga_dist.data.image_sets import ImageSet
    from saga_dist.models.encoder import Encoder

RECALL_AT = (1, 2, 4, LARGEST_K)
"""Values of K for which Recall@K is computed."""


def validation_recall(learner: Learner) -> float:
    """Returns Recall@1 on the validation classes, in [0, 1]."""
    embeddings = learner.embed("val")
    return float(recall_at_k(embeddings.values_IE, embeddings.labels_I, ks=(1,)).recall[1])


def retrieval_result(
    embeddings: Embeddings,
    gallery: Embeddings | None = None,
    *,
    seed: int,
    resamples: int,
    precision: bool = False,
    on_hits: Callable[[FirstHits], None] = lambda hits: None,
) -> SplitResult:
    """Returns Recall@{1,2,4,8}, NMI and a class-clustered 95 % interval of Recall@1.

    Args:
        embeddings: embeddings of the queries; NMI is computed from these alone.
        gallery: embeddings that the queries search; None to search the queries, each without itself.
        seed: seed of k-means and of the bootstrap.
        resamples: number of bootstrap resamples.
        precision: True to compute MAP@R and R-precision too; the ranking is then as deep as the largest class.
        on_hits: receives the rank of the first hit of each query.
    """
    values_IE, labels_I = embeddings.values_IE, embeddings.labels_I
    gallery_GE, gallery_labels_G = (None, None) if gallery is None else (gallery.values_IE, gallery.labels_I)
    if precision:
        found, at_r = ranking_metrics(
            values_IE, labels_I, ks=RECALL_AT, gallery_GE=gallery_GE, gallery_labels_G=gallery_labels_G
        )
    else:
        found = recall_at_k(values_IE, labels_I, ks=RECALL_AT, gallery_GE=gallery_GE, gallery_labels_G=gallery_labels_G)
        at_r = None
    on_hits(FirstHits(np.asarray(labels_I, np.int64), found.first_hit_I.astype(np.uint8)))
    low, high = clustered_interval(found.correct_at_1_I, labels_I, seed=seed, num_resamples=resamples)
    return SplitResult(
        recall_at_1=found.recall[1],
        recall_at_2=found.recall[2],
        recall_at_4=found.recall[4],
        recall_at_8=found.recall[8],
        nmi=nmi(values_IE, labels_I, seed=seed),
        confidence_interval=(low, high),
        num_queries=len(labels_I),
        num_classes=len(np.unique(labels_I)),
        num_unfindable=found.num_unfindable,
        map_at_r=None if at_r is None else at_r.map_at_r,
        r_precision=None if at_r is None else at_r.r_precision,
    )


def evaluate_method(
    name: str,
    runtime: Runtime,
    config: RunConfig,
    *,
    splits: Sequence[str],
    pretrained: bool = False,
    selected_step: int = 0,
    wall_s: float = 0.0,
    on_hits: Callable[[str, FirstHits], None] = lambda split, hits: None,
) -> MethodResult:
    """Returns one row of results, for the learner's present weights.

    Args:
        name: name of the method.
        runtime: learner and worker pools.
        config: configuration of the run.
        splits: splits to evaluate, ``val`` and ``test``; verdicts and probes are computed only if ``test`` is included.
        pretrained: True to evaluate the pre-trained tower with mean pooling.
        selected_step: optimizer steps of the evaluated weights.
        wall_s: training time to report, seconds.
        on_hits: receives, for each split, the rank of the first hit of each query.
    """
    learner, settings = runtime.learner, config.evaluation
    stage("evaluating %s on %s", name, " and ".join(splits))
    results = {
        split: retrieval_result(
            learner.embed(split, pretrained=pretrained),
            _gallery(learner, split, pretrained=pretrained),
            seed=config.run.seed,
            resamples=settings.bootstrap_resamples,
            on_hits=partial(on_hits, split),
        )
        for split in splits
        if len(learner.labels(split))
    }
    on_test = "test" in splits
    return MethodResult(
        name=name,
        splits=results,
        seeds=(config.run.seed,),
        wall_s=wall_s,
        optimizer_steps=0 if pretrained else config.run.steps,
        selected_step=selected_step,
        verdicts={split: judge_pairs(runtime, config, split) for split in ("train", "test")}
        if on_test and settings.verdict_pairs
        else {},
        probes=attribute_probes(learner, pretrained=pretrained) if on_test else None,
    )


def _gallery(learner: Learner, split: str, *, pretrained: bool) -> Embeddings | None:
    """Returns the gallery that the queries of a split search; None for data without a separate gallery."""
    if split != "test" or not len(learner.labels("gallery")):
        return None
    return learner.embed("gallery", pretrained=pretrained)


def judge_pairs(runtime: Runtime, config: RunConfig, split: str) -> VerdictResult:
    """Returns the verdict accuracy of the frozen MLLM, with the present encoder's tokens, on fixed pairs of a split.

    Completions are greedy. The pairs depend only on the seed of the run and the labels of the split.

    Args:
        runtime: learner and worker pools.
        config: configuration of the run.
        split: name of the split.
    """
    settings = config.rollout
    labels_I = runtime.learner.labels(split)
    pairs = evaluation_pairs(labels_I, config.evaluation.verdict_pairs, counter_seed(config.run.seed, "verdict pairs"))
    sampling = Sampling(num_completions=1, temperature=0.0, top_p=1.0, max_tokens=settings.max_tokens, seed=0)
    handles = runtime.learner.encode_pairs(split, pairs)
    tasks = [RolloutTask(pair, handle, sampling) for pair, handle in zip(pairs, handles, strict=True)]
    groups = run_all(runtime.rollouts, tasks)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for group in groups:
        right[group.pair.same].append(group.verdicts[0] == group.pair.same)
    valid = [json_is_valid(group.completions.texts[0]) for group in groups]
    return VerdictResult(
        same_accuracy=float(np.mean(right[True])),
        different_accuracy=float(np.mean(right[False])),
        json_valid_share=float(np.mean(valid)),
        num_same=len(right[True]),
        num_different=len(right[False]),
    )


def attribute_probes(learner: Learner, *, pretrained: bool = False) -> dict[str, float] | None:
    """Returns the linear-probe accuracy of each attribute, in [0, 1], fitted on ``probe`` and measured on ``test``.

    None when the data has no split ``probe`` or no attributes.
    """
    if not len(learner.labels("probe")):
        return None
    fit, test = (learner.embed(split, pretrained=pretrained) for split in ("probe", "test"))
    if fit.attributes_IA is None or test.attributes_IA is None:
        return None
    accuracy = linear_probe_accuracy(fit.values_IE, fit.attributes_IA, test.values_IE, test.attributes_IA)
    return {name: float(value) for name, value in zip(test.attribute_names, accuracy, strict=True)}


def embed_images(encoder: Encoder, images: ImageSet) -> Embeddings:
    """Returns the embeddings of all images of a split by a deployed encoder."""
    values_IE = encoder.encode([images.image(index) for index in range(len(images))])
    return Embeddings(values_IE, images.labels_I, images.attributes_IA)
