"""Describe a combination as text."""

from __future__ import annotations

from lora_kit.merging.combining.result import CombinationResult


def describe_combination(result: CombinationResult) -> str:
    """Return sources, weights, rank and kept energy of a combination, with warnings, as lines."""
    ranks = sorted({module.rank for module in result.modules.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    lines = [f"{len(result.modules)} modules of {len(result.sources)} adapters, {rank}:"]
    lines += [
        f"  {source['name']}: weight {source['weight']:.4g}, {source['modules']} modules"
        + (f", {source['examples']} examples" if source["examples"] else "")
        for source in result.sources
    ]
    if result.partial:
        lines.append(
            f"{result.partial} modules are not changed by all adapters; a missing update counts "
            "as zero"
        )
    if result.method != "linear":
        name, worst = result.worst
        lines.append(
            f"The rank keeps {result.kept_energy:.1%} of the combined updates' energy, and least "
            f"in {name}: {worst.kept_energy:.1%}"
        )
    if len({source["sha256"] for source in result.sources}) < len(result.sources):
        lines.append("Warning: an adapter is given twice, and counts twice.")
    if result.compared_by == "name":
        lines.append(
            "Warning: some adapters have no fingerprint of their backbone; only the names of the "
            "base models were compared, which does not show that the weights are the same"
        )
    return "\n".join(lines)
