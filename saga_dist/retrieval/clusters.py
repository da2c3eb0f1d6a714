"""k-means clusters of embeddings, and their agreement with classes (NMI)."""

from __future__ import annotations

import numpy as np

from saga_dist.retrieval.normalized import check_labels, normalized_rows


def nmi(embeddings_IE: np.ndarray, labels_I: np.ndarray, *, seed: int = 0, num_iterations: int = 20) -> float:
    """Returns the normalised mutual information between classes and k-means clusters, in [0, 1].

    There are as many clusters as classes (``kmeans_clusters``); the score is scikit-learn's, with the arithmetic mean
    of the entropies as normaliser.

    Args:
        embeddings_IE: floating [I, E].
        labels_I: integers [I].
        seed: seed of the initial centroids.
        num_iterations: iterations of k-means.

    Raises:
        DataError: shapes or types do not fit, or an embedding is zero or not finite.
    """
    from sklearn.metrics import normalized_mutual_info_score

    labels = check_labels(labels_I, len(embeddings_IE))
    cluster_I = kmeans_clusters(embeddings_IE, len(np.unique(labels)), seed=seed, num_iterations=num_iterations)
    return float(np.clip(normalized_mutual_info_score(labels, cluster_I), 0.0, 1.0))


def kmeans_clusters(
    embeddings_IE: np.ndarray, num_clusters: int, *, seed: int = 0, num_iterations: int = 20
) -> np.ndarray:
    """Returns the cluster of each embedding, int64 [I], by faiss k-means on unit vectors with one initialisation.

    Args:
        embeddings_IE: floating [I, E].
        num_clusters: number of clusters, at most I.
        seed: seed of the initial centroids.
        num_iterations: iterations of k-means.

    Raises:
        DataError: the embeddings are not a floating matrix, or a row is zero or not finite.
    """
    import faiss

    embeddings = normalized_rows(embeddings_IE)
    kmeans = faiss.Kmeans(
        embeddings.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=seed % 2**31,  # faiss stores it as a C int
        # These bounds make faiss use all points: by default it subsamples large clusters and warns about small ones.
        max_points_per_centroid=len(embeddings),
        min_points_per_centroid=1,
    )
    kmeans.train(embeddings)
    _, cluster_I1 = kmeans.index.search(embeddings, 1)
    cluster_I: np.ndarray = cluster_I1[:, 0]
    return cluster_I
