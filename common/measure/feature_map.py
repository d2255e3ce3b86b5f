"""Pictures of what adaptation did: features of both domains in two dimensions, and who is taken for whom."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 100  # images of each domain in a picture


@torch.no_grad()
def collect(model: Any, test: Mapping[str, Any], shown: int = SHOWN) -> dict[str, np.ndarray]:
    """Features and labels of the first test images of each domain: "source", "target" (N, F), "source_labels", ….

    Args:
        test: batches of images and labels by domain. The model is in evaluation mode meanwhile.
    """
    training = model.training
    model.eval()
    arrays: dict[str, np.ndarray] = {}
    for domain, batches in test.items():
        features, labels = [], []
        images_left = shown
        for images, targets in batches:
            features.append(model.features(images[:images_left]).float().cpu())
            labels.append(targets[:images_left].cpu())
            images_left -= len(features[-1])
            if images_left <= 0:
                break
        arrays[domain] = torch.cat(features).numpy()
        arrays[f"{domain}_labels"] = torch.cat(labels).numpy()
    model.train(training)
    return arrays


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write them as a compressed .npz."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def draw(pictures: Mapping[str, dict[str, np.ndarray]], path: Path, title: str) -> Path:
    """Both domains' features side by side, by t-SNE (van der Maaten and Hinton, 2008) with a fixed seed.

    Colours are classes; circles are the source, crosses the target.

    Args:
        pictures: what ``collect`` gave, by title, such as before and after training.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(pictures), 5))
    for axes, (when, arrays) in zip(np.atleast_1d(figure.subplots(1, len(pictures))), pictures.items(), strict=True):
        scatter(axes, arrays)
        axes.set_title(when)
        axes.legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def scatter(axes: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """One t-SNE of what ``collect`` gave, on a matplotlib axes."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = np.concatenate((arrays["source"], arrays["target"]))
    features = PCA(min(30, *features.shape), random_state=0).fit_transform(features)
    perplexity = min(30, (len(features) - 1) / 3)
    flat = TSNE(perplexity=perplexity, random_state=0, init="pca", max_iter=500).fit_transform(features)
    count = len(arrays["source"])
    for domain, points, marker in (("source", flat[:count], "o"), ("target", flat[count:], "x")):
        labels = arrays[f"{domain}_labels"]
        axes.scatter(*points.T, c=labels, cmap="tab20", s=12, marker=marker, linewidths=0.7, label=domain)
    axes.set(xticks=[], yticks=[])


def draw_confusions(confusions: Mapping[str, Any], classes: Iterable[str], path: Path) -> Path:
    """Confusion matrices side by side, rows the true class, in shares of the row; keys are the titles."""
    from matplotlib.figure import Figure

    names = list(classes)
    figure = Figure(figsize=(5.5 * len(confusions), 5))
    for axes, (title, confusion) in zip(
        np.atleast_1d(figure.subplots(1, len(confusions))), confusions.items(), strict=True
    ):
        show_confusion(axes, np.asarray(confusion, dtype=float), names)
        axes.set_title(title)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def show_confusion(axes: Any, counts: np.ndarray, names: Sequence[str], cmap: Any = "Blues") -> None:
    """(C, C) counts on a matplotlib axes, rows the true class, in shares of the row."""
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap=cmap, vmin=0, vmax=1, interpolation="none")
    small = 8 if len(names) <= 12 else 5
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=small)
    axes.set_yticks(range(len(names)), names, fontsize=small)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(C, C) counts, rows the true class, of (B, C) logits and (B,) labels."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes).view(classes, classes)


def per_class(confusion: Tensor, classes: Iterable[str]) -> dict[str, float]:
    """Accuracy of each class in per cent, from ``confusion``; 0 for a class without images."""
    rows = zip(classes, confusion, strict=True)
    return {name: round(100 * float(row[i]) / max(int(row.sum()), 1), 2) for i, (name, row) in enumerate(rows)}
