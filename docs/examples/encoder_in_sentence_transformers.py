"""Example of a trained encoder in sentence-transformers: the photos nearest to an image, and photos nearly alike.

    saga-dist export runs/mine --format sentence-transformers --out encoder
    python docs/examples/encoder_in_sentence_transformers.py encoder photos query.jpg

The export is a ``SentenceTransformer`` whose ``encode`` takes images: paths, PIL images, arrays, in a list. All that
sentence-transformers does with embeddings works with it. ``load_model`` needs no ``trust_remote_code``, which version 6
asks for to load the same folder by ``SentenceTransformer(folder)``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer, util

from saga_dist.errors import UserError
from saga_dist.export.st_module import load_model
from saga_dist.retrieval.image_list import list_images


def nearest(
    model: SentenceTransformer, query: Path, photos: list[Path], embeddings_IE: torch.Tensor
) -> list[tuple[Path, float]]:
    """Returns the five photos nearest to an image with their cosines, best first.

    Args:
        model: exported encoder.
        query: file of the image.
        photos: I files.
        embeddings_IE: float32 [I, E], their embeddings.
    """
    (hits,) = util.semantic_search(model.encode([str(query)], convert_to_tensor=True), embeddings_IE, top_k=5)
    return [(photos[int(hit["corpus_id"])], float(hit["score"])) for hit in hits]


def alike(photos: list[Path], embeddings_IE: torch.Tensor, threshold: float = 0.99) -> list[tuple[Path, Path, float]]:
    """Returns the pairs of photos whose cosine is at least ``threshold``, the most alike first."""
    pairs = util.paraphrase_mining_embeddings(embeddings_IE)
    return [(photos[int(a)], photos[int(b)], score) for score, a, b in pairs if score >= threshold]


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description="Print the photos nearest to an image, and photos nearly alike.")
    parser.add_argument("encoder", type=Path, help="folder from saga-dist export --format sentence-transformers")
    parser.add_argument("photos", type=Path, help="folder of images, searched at every depth")
    parser.add_argument("query", type=Path, help="image to search with")
    return parser


def main() -> None:
    """Prints a line for each photo found, with its cosine."""
    parser = arguments()
    given = parser.parse_args()
    try:
        photos = [given.photos / file.id for file in list_images(given.photos).files]
        model = load_model(given.encoder)
        embeddings_IE = model.encode([str(photo) for photo in photos], convert_to_tensor=True)
        found = nearest(model, given.query, photos, embeddings_IE)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    for photo, cosine in found:
        print(f"{cosine:.4f}  {photo}")
    for a, b, cosine in alike(photos, embeddings_IE):
        print(f"{cosine:.4f}  {a} and {b} are nearly alike")


if __name__ == "__main__":
    main()
