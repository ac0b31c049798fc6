"""Offline verification of a release from its own files.

Verification detects every changed byte, and every value in verdict, manifest and card that does not
follow from the ledger and the files. Without a signature, verification cannot detect a release that
was fabricated entirely, ledger included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from lora_kit.adapter.saved import BACKBONE, adapter_sha256
from lora_kit.evaluation.verdict import Verdict
from lora_kit.evaluation.verdict_file import RecordedVerdict, check_verdict, read_verdict
from lora_kit.merging.exporting.modelfile import modelfile_of
from lora_kit.merging.record import MERGE_RECORD, recorded_merge_failures
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.card import model_card, same_card
from lora_kit.releasing.gate import MERGE_KEYS, release_decision, verdict_matches_merge
from lora_kit.releasing.manifest import (
    ADAPTER,
    CARD,
    EVALUATION,
    MANIFEST,
    RECIPE,
    Manifest,
    fingerprint_digest,
    read_manifest,
    rows_by_arm,
    unexpected_files,
)
from lora_kit.runtime.errors import LoraKitError, ReleaseError
from lora_kit.runtime.files import read_json

# Errors that files with an unexpected structure raise.
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, jinja2.TemplateError)
FOLDERS = (f"{ADAPTER}/", f"{EVALUATION}/")
REMEDY = "Fix: get an unmodified copy of the release"


def verify_release(directory: Path, checked: Mapping[str, str] | None = None) -> Manifest:
    """Check every file of a release, and that verdict, manifest and card follow from its ledger.

    Args:
        directory: the release.
        checked: sha256 of the evaluation's files that were judged in this process, by name; the
            same files are not judged again.

    Raises:
        ReleaseError: naming each file that changed, is missing, new or not a regular file, and
            each value that does not follow.
        EvaluationError: if the verdict does not follow from the ledger.
    """
    manifest = read_manifest(directory)
    _refuse(
        directory, "files differ from the manifest", unexpected_files(directory, manifest.files)
    )
    evaluation = directory / EVALUATION
    is_checked = (
        checked is not None
        and checked.items()
        <= {
            name.removeprefix(f"{EVALUATION}/"): digest for name, digest in manifest.files.items()
        }.items()
    )
    recorded = read_verdict(evaluation) if is_checked else check_verdict(evaluation)
    merge = read_json(directory / MERGE_RECORD, ReleaseError)
    _refuse_undecided(directory, manifest, recorded.verdict)
    try:
        problems = list(_contradictions(directory, manifest, recorded, merge))
        written = (directory / CARD).read_text(encoding="utf-8")
        if not problems and not same_card(written, model_card(manifest, recorded.verdict, merge)):
            problems.append(f"{CARD}: differs from the card of this manifest and verdict")
    except (*MALFORMED, OSError) as error:
        problems = [f"a file of the release cannot be read: {type(error).__name__}: {error}"]
    _refuse(directory, "files of the release contradict one another", problems)
    return manifest


def _refuse(directory: Path, summary: str, problems: list[str]) -> None:
    if problems:
        lines = "".join(f"\n  {one}" for one in problems)
        raise ReleaseError(f"{directory}: {summary} (got {len(problems)}). {REMEDY}{lines}")


def _refuse_undecided(directory: Path, manifest: Manifest, verdict: Verdict) -> None:
    decision, undecided, _ = release_decision(verdict, str(directory), manifest.formats.values())
    if decision is None:
        raise ReleaseError(
            f"{directory}: the merged model was not evaluated on every task (got no decision). "
            f"{REMEDY}"
        )
    if manifest.decision != decision:
        raise ReleaseError(
            f"{directory / MANIFEST}: decision: differs from the verdict's {decision} (got "
            f"{manifest.decision}). {REMEDY}"
        )
    acceptance = manifest.acceptance
    if decision == "FAIL" or (decision == "INCONCLUSIVE" and acceptance is None):
        raise ReleaseError(
            f"{directory}: cannot have been released with its verdict (got {decision}). {REMEDY}"
        )
    if acceptance and (decision == "PASS" or list(acceptance.tasks) != undecided):
        accepted = ", ".join(acceptance.tasks) or "no task"
        raise ReleaseError(
            f"{directory}: the accepted tasks are not the undecided tasks, "
            f"{', '.join(undecided) or 'of which there are none'} (got {accepted}). {REMEDY}"
        )


def _contradictions(
    directory: Path, manifest: Manifest, recorded: RecordedVerdict, merge: Mapping[str, Any]
) -> Iterator[str]:
    """Yield contradictions between manifest, verdict, merge record, adapter and recipe."""
    unmeasured = f"{MERGE_RECORD}: the merged files differ from what was measured"
    if not set(merge) >= MERGE_KEYS:
        yield unmeasured
        return
    stored = read_json(directory / "config.json", ReleaseError).get("dtype")
    if stored != merge["dtype"]:
        yield f"{MERGE_RECORD}: dtype is {merge['dtype']}, but config.json has {stored}"
    for problem in recorded_merge_failures(merge, manifest.resolved_recipe.backbone.quantization):
        yield f"{unmeasured}: {problem}"
    yield from _other_digests(directory, manifest, recorded, merge)
    if {name: manifest.files.get(name) for name in merge["files"]} != merge["files"]:
        yield f"{MANIFEST}: the merged files differ from those of {MERGE_RECORD}"
    at_root = {*merge["files"], CARD, RECIPE, MERGE_RECORD, *manifest.formats}
    at_root |= {modelfile_of(Path(name)).name for name in manifest.formats}
    unknown = [
        name
        for name in manifest.files
        if (name not in at_root if "/" not in name else not name.startswith(FOLDERS))
    ]
    if unknown:
        yield f"{MANIFEST}: lists files that are not part of a release: {', '.join(unknown)}"
    if not verdict_matches_merge(recorded, merge):
        yield "the verdict measured other merged files"
    for name, arm in manifest.formats.items():
        if arm not in recorded.verdict.files:
            yield f"{name}: was not judged"
        elif manifest.files.get(name) != recorded.lineage.merged_models.get(arm):
            yield f"{name}: is not the file that was judged as {arm}"
    yield from _recipe_contradictions(directory, manifest, recorded)


def _other_digests(
    directory: Path, manifest: Manifest, recorded: RecordedVerdict, merge: Mapping[str, Any]
) -> Iterator[str]:
    """Yield files whose backbone or adapter is not the manifest's."""
    of_adapter = read_json(directory / ADAPTER / BACKBONE, ReleaseError)
    backbones = {
        "its own parts": fingerprint_digest(manifest.backbone),
        "the verdict": recorded.lineage.backbone,
        MERGE_RECORD: merge["backbone"],
        "the adapter": of_adapter["fingerprint"]["digest"],
    }
    for name, digest in backbones.items():
        if digest != manifest.backbone.get("digest"):
            yield f"{MANIFEST}: the backbone differs from that of {name}"
    adapters = {
        "adapter/": adapter_sha256(directory / ADAPTER),
        "the verdict": recorded.lineage.adapter,
        MERGE_RECORD: merge["adapter"],
    }
    for name, digest in adapters.items():
        if digest != manifest.adapter:
            yield f"{MANIFEST}: the adapter differs from that of {name}"


def _recipe_contradictions(
    directory: Path, manifest: Manifest, recorded: RecordedVerdict
) -> Iterator[str]:
    """Yield values of the manifest that differ from the recipe, the verdict or the ledger."""
    try:
        recipe = Recipe.load(directory / RECIPE)
    except LoraKitError as error:
        yield str(error)
        return
    if recipe != manifest.resolved_recipe or recipe.name != manifest.name:
        yield f"{MANIFEST}: the recipe differs from {RECIPE}"
    if recipe.seed != manifest.seeds.get("recipe"):
        yield f"{MANIFEST}: the seed differs from the recipe's"
    if recorded.lineage.suite_digests != manifest.suites:
        yield f"{MANIFEST}: the suites differ from the verdict's"
    if rows_by_arm(directory / EVALUATION) != manifest.results.get("rows"):
        yield f"{MANIFEST}: the number of results differs from the ledger's"
    stated = [recipe.backbone.license, *(source.license for source in recipe.data.train)]
    listed = [work.license for work in manifest.works if work.used in ("base", "train")]
    if len(listed) != len(stated) or any(
        of_recipe not in (None, of_work) for of_recipe, of_work in zip(stated, listed, strict=True)
    ):
        yield f"{MANIFEST}: the licences differ from those that the recipe states"
