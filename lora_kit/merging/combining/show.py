"""A combination in words."""

from __future__ import annotations

from lora_kit.merging.combining.combine import Combined


def described(result: Combined) -> str:
    """What was combined, with which weights, what it cost, and what is uncertain."""
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
            f"{result.partial} modules are not changed by all adapters; an update that is missing "
            "counts as zero"
        )
    if result.method != "linear":
        name, worst = result.worst
        lines.append(
            f"{result.kept_energy:.1%} of the combined updates' energy fits into this rank, least "
            f"of {name}: {worst.kept_energy:.1%}"
        )
    if len({source["sha256"] for source in result.sources}) < len(result.sources):
        lines.append("An adapter is given twice.")
    if result.compared_by == "name":
        lines.append(
            "Not all adapters have the fingerprint of their backbone: only the names of their base "
            "models were compared, which does not show whether the weights are the same"
        )
    return "\n".join(lines)
