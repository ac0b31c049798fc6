"""InfoNCE with in-batch negatives, as a function of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_kit.data.units import Unit


@dataclass(frozen=True)
class Contrast:
    """Texts of a step, and which of them are told apart.

    Attributes:
        texts: token ids of each text: all anchors, all positives, then all negatives.
        pairs: number of pairs.
        excluded: (pairs, positives and negatives) bool, true where a text is no negative of an
            anchor although it is not the anchor's own positive.
    """

    texts: tuple[tuple[int, ...], ...]
    pairs: int
    excluded: torch.Tensor

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Contrast:
        """Return the contrast of pairs and triplets.

        A text that equals the anchor, or one of the anchor's positives in this step, is no negative
        of it.
        """
        pairs = len(units)
        sides = [[unit.examples[side].input_ids for unit in units] for side in (0, 1)]
        negatives = [unit.examples[2].input_ids for unit in units if len(unit.examples) > 2]
        texts = (*sides[0], *sides[1], *negatives)
        numbers: dict[tuple[int, ...], int] = {}
        same = [numbers.setdefault(text, len(numbers)) for text in texts]
        anchors, candidates = same[:pairs], same[pairs:]
        right = {anchor: {anchor} for anchor in anchors}
        for anchor, positive in zip(anchors, candidates, strict=False):
            right[anchor].add(positive)
        excluded = torch.tensor([[text in right[one] for text in candidates] for one in anchors])
        excluded[range(pairs), range(pairs)] = False
        return cls(texts, pairs, excluded)

    def losses(
        self, vectors: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each pair, and where its positive is the nearest of the texts.

        -log(exp(s(a, p) / t) / sum over c of exp(s(a, c) / t)), with the cosine s, and with c the
        pair's positive and its negatives: the other positives and all negatives of the step (van
        den Oord et al. 2018, arXiv:1807.03748, equation 4; Henderson et al. 2017, arXiv:1705.00652,
        section 4.4). A positive that several pairs share, and each positive of an anchor that
        occurs several times, is left out of c.

        Args:
            vectors: (texts, hidden size) float32, of length 1, in the order of `texts`.
            temperature: t.

        Returns:
            (pairs,) float32 in nats, and (pairs,) bool.
        """
        anchors, candidates = vectors[: self.pairs], vectors[self.pairs :]
        scores = anchors @ candidates.T / temperature
        scores = scores.masked_fill(self.excluded.to(scores.device), -torch.inf)
        own = torch.arange(self.pairs, device=scores.device)
        losses = torch.nn.functional.cross_entropy(scores, own, reduction="none")
        return losses, scores.argmax(dim=1) == own
