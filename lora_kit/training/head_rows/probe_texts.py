"""Texts of rows as linear probes read them, and the rows that one fold keeps together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.duplicates import DuplicateSearch
from lora_kit.data.audit.words import hash_words
from lora_kit.data.labelled import classification_text, encode_texts
from lora_kit.data.row_sets import Rows, read_blocks
from lora_kit.data.rows import Row
from lora_kit.modeling.linear_probe import mean_hidden_states
from lora_kit.modeling.modes import eval_mode
from lora_kit.recipe.data import LabelErrorFolds
from lora_kit.runtime.errors import DataError


def text_features(backbone: Backbone, texts: list[str], max_length: int) -> NDArray[np.float32]:
    """Return `mean_features` of texts without a target, (texts, hidden size) float32."""
    encoded = encode_texts(texts, backbone.tokenizer, max_length)
    with eval_mode(backbone.model):
        return mean_hidden_states(backbone, [ids for ids, _ in encoded])


def text_of(row: Row) -> str:
    """Return what a head would read of a row with or without a target."""
    return classification_text(row) if row.text is None else row.text


def row_groups(rows: Rows, folds: LabelErrorFolds) -> NDArray[np.int64]:
    """Return the group of each row that stays in one fold, (rows,) int64.

    Args:
        rows: training rows.
        folds: `clusters`: rows of a cluster and near duplicates share a group; `rows`: near
            duplicates alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    search, clusters = DuplicateSearch(), []
    for block, _ in read_blocks(rows):
        # Without the label: a text with two labels would otherwise be no duplicate.
        texts = [(text_of(row),) for row in block]
        search.update(texts, [hash_words(parts) for parts in texts])
        clusters += [row.cluster for row in block]
    duplicates = search.groups()
    if folds == "rows":
        return duplicates
    by_cluster = np.unique(clusters, return_inverse=True)[1]
    # Groups of duplicates and clusters are nodes; a row links its group with its cluster.
    nodes = int(duplicates.max()) + 1, int(by_cluster.max()) + 1
    ends = duplicates, by_cluster + nodes[0]
    links = coo_array((np.ones(len(duplicates)), ends), shape=(sum(nodes), sum(nodes)))
    found = connected_components(links, directed=False)[1]
    return np.asarray(found[duplicates], np.int64)


def without_folds(field: str, rows: int, groups: NDArray[np.int64], fix: str) -> DataError:
    """Return the refusal of rows that cannot be divided into folds.

    Args:
        field: field of the recipe that needs the folds.
        rows: number of rows.
        groups: (rows,) int64, group of each row that stays in one fold.
        fix: advice, in words.
    """
    return DataError(
        f"{field}: the rows cannot be divided into folds that have two classes each (got "
        f"{rows:,} rows in {len(np.unique(groups)):,} groups). Fix: {fix}"
    )
