"""The names of the metrics that each protocol gives: what a study can decide on or report."""

from __future__ import annotations

from typing import assert_never

from simlap.config.schema import KNN, Collapse, Evaluation, FineTune, Gates, Linear, Probe, Transfer

COLLAPSE = (
    "effective_rank",
    "participation_ratio",
    "std_mean",
    "std_min",
    "unit_std_mean",
    "unit_std_min",
    "alignment",
    "uniformity",
    "embedding_effective_rank",
)
GATES = (
    "activation",
    "self_activation",
    "entropy",
    "open_fraction",
    "dimensions_per_pair",
    "dead_dimensions",
    "closed_dimensions",
    "open_dimensions",
    "pair_std",
    "directions",
    "spearman_features",
    "p_features",
    "self_cosine_spearman_features",
    "self_cosine_p_features",
    "spearman_hierarchy",
    "p_hierarchy",
    "self_cosine_spearman_hierarchy",
    "self_cosine_p_hierarchy",
    "cophenetic",
    "purity",
    "dendrogram_purity",
)


def metric_names(evaluation: Evaluation, split: str) -> list[str]:
    """Names of what a protocol gives on a split, `val` or `test`.

    With the selection split (`test` where there is no validation), these are what an epoch along the way has; the final
    evaluation has those of the selection split and of `test`. Some are absent where they are not defined: alignment and
    uniformity without pairs, `embedding_*` where the method has no embedding, hierarchy and purity without a hierarchy. The
    spectrum that collapse gives along the way is a curve by rank, on which nothing is decided: its values have no names here.
    """
    match evaluation:
        case Probe():
            return [f"{split}/probe_top1", f"{split}/probe_loss"]
        case KNN():
            return [f"{split}/knn_top1", *(f"{split}/knn_top1_k{k}" for k in evaluation.k)]
        case Linear():
            return [f"{split}/linear_top1", "linear_l2"]
        case FineTune():
            return [f"{split}/finetune_top1"]
        case Collapse():
            own = [f"collapse/{name}" for name in COLLAPSE]
            return own + [f"test/collapse_{name}" for name in COLLAPSE] if split == "test" else own
        case Gates():
            return [f"gates/{name}" for name in GATES]
        case Transfer():
            return [
                transferred(name, metric)
                for name, data in evaluation.data.items()
                if split == "test" or data.validation != "none"
                for protocol in evaluation.protocols
                for metric in metric_names(protocol, split)
            ]
        case _:
            assert_never(evaluation)


def transferred(dataset: str, metric: str) -> str:
    """The name of a metric on another dataset: `test/knn_top1` -> `test/pets_knn_top1`, `linear_l2` -> `pets_linear_l2`."""
    split, slash, name = metric.rpartition("/")
    return f"{split}{slash}{dataset}_{name}"
