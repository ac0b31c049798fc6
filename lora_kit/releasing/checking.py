"""A release checked by somebody who was not there: offline, and of nothing but its own files.

What is found: every byte that changed, every figure of verdict, manifest and card that does not
follow from the ledger and the files. What cannot be found without a signature: a release that was
made up as a whole, ledger included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from lora_kit.adapter.attach import adapter_sha256
from lora_kit.evaluation.harness import check_verdict, read_verdict
from lora_kit.merging.record import MERGE_RECORD
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.card import model_card, same_card
from lora_kit.releasing.figures import against_passing
from lora_kit.releasing.gate import MERGE_KEYS, judged, names_its_merge
from lora_kit.releasing.manifest import (
    ADAPTER,
    CARD,
    EVALUATION,
    RECIPE,
    Manifest,
    changed_files,
    fingerprint_digest,
    read_manifest,
    rows_by_arm,
)
from lora_kit.runtime.errors import LoraKitError, ReleaseError
from lora_kit.runtime.files import read_json

# What a part raises that is not built as ours are.
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, jinja2.TemplateError)


def verify_release(directory: Path) -> Manifest:
    """Check every file of a release, and that all it says follows from its ledger.

    Raises:
        ReleaseError: naming each file that changed, is missing, new or no plain file, and each
            statement that does not follow.
        EvaluationError: if the verdict does not follow from the ledger.
    """
    manifest = read_manifest(directory)
    _refuse(directory, "not what was released", changed_files(directory, manifest.files))
    check_verdict(directory / EVALUATION)
    verdict = read_verdict(directory / EVALUATION)
    merge = read_json(directory / MERGE_RECORD, ReleaseError)
    _refuse_undecided(directory, manifest, verdict)
    try:
        problems = list(_contradictions(directory, manifest, verdict, merge))
        written = (directory / CARD).read_text(encoding="utf-8")
        if not problems and not same_card(written, model_card(manifest, verdict, merge)):
            problems.append(f"{CARD} is not the card of this manifest and this verdict")
    except (*MALFORMED, OSError) as error:
        problems = [f"a part of it cannot be read: {type(error).__name__}: {error}"]
    _refuse(directory, "its parts contradict one another", problems)
    return manifest


def _refuse(directory: Path, what: str, problems: list[str]) -> None:
    if problems:
        raise ReleaseError(f"{directory}: {what}" + "".join(f"\n  {one}" for one in problems))


def _refuse_undecided(directory: Path, manifest: Manifest, verdict: Mapping[str, Any]) -> None:
    decision, undecided, _ = judged(verdict, str(directory))
    if decision is None:
        raise ReleaseError(f"{directory}: its merged model was not evaluated on every task")
    if manifest.decision != decision:
        raise ReleaseError(
            f"{directory}: its verdict is {decision}, its manifest says {manifest.decision}"
        )
    acceptance = manifest.acceptance
    if decision == "FAIL" or (decision == "INCONCLUSIVE" and acceptance is None):
        raise ReleaseError(f"{directory}: its verdict is {decision}, so it was never released")
    if acceptance and (decision == "PASS" or list(acceptance.tasks) != undecided):
        raise ReleaseError(f"{directory}: what was accepted is not what is undecided")


def _contradictions(
    directory: Path, manifest: Manifest, verdict: Mapping[str, Any], merge: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what manifest, verdict, merge, adapter and recipe do not agree on."""
    unfounded = f"{MERGE_RECORD}: the merged files were not found to be what was measured"
    if not set(merge) >= MERGE_KEYS:
        yield unfounded
        return
    stored = read_json(directory / "config.json", ReleaseError).get("dtype")
    if stored != merge["dtype"]:
        yield f"{MERGE_RECORD}: says that {merge['dtype']} is stored, and config.json {stored}"
    for problem in against_passing(merge, manifest.resolved.backbone.quantization):
        yield f"{unfounded}: {problem}"
    of_adapter = read_json(directory / ADAPTER / "backbone.json", ReleaseError)
    backbones = {
        "its own parts": fingerprint_digest(manifest.backbone),
        "the verdict": verdict["backbone"],
        MERGE_RECORD: merge["backbone"],
        "the adapter": of_adapter["fingerprint"]["digest"],
    }
    for name, digest in backbones.items():
        if digest != manifest.backbone.get("digest"):
            yield f"the manifest's backbone is not that of {name}"
    adapters = {
        "adapter/": adapter_sha256(directory / ADAPTER),
        "the verdict": verdict["adapter"],
        MERGE_RECORD: merge["adapter"],
    }
    for name, digest in adapters.items():
        if digest != manifest.adapter:
            yield f"the manifest's adapter is not that of {name}"
    if {name: manifest.files.get(name) for name in merge["files"]} != merge["files"]:
        yield f"the merged files are not those of {MERGE_RECORD}"
    unknown = ", ".join(_of_no_part(manifest.files, merge["files"]))
    if unknown:
        yield f"belongs to no part of a release: {unknown}"
    if not names_its_merge(verdict, merge):
        yield "the verdict is of other merged files"
    yield from _of_recipe(directory, manifest, verdict)


def _of_no_part(files: Iterable[str], merged: Iterable[str]) -> Iterator[str]:
    """Yield the files that are neither the merged model's nor what is written beside it."""
    at_root = {*merged, CARD, RECIPE, MERGE_RECORD}
    for name in files:
        folder, slash, _ = name.partition("/")
        if folder not in (ADAPTER, EVALUATION) if slash else name not in at_root:
            yield name


def _of_recipe(directory: Path, manifest: Manifest, verdict: Mapping[str, Any]) -> Iterator[str]:
    try:
        recipe = Recipe.load(directory / RECIPE)
    except LoraKitError as error:
        yield str(error)
        return
    if recipe != manifest.resolved or recipe.name != manifest.name:
        yield "the manifest's recipe is not recipe.yaml"
    if recipe.seed != manifest.seeds.get("recipe"):
        yield "the manifest's seed is not the recipe's"
    if verdict["suite_digests"] != manifest.suites:
        yield "the manifest's suites are not those of the verdict"
    if rows_by_arm(directory / EVALUATION) != manifest.results.get("rows"):
        yield "the manifest counts other results than the ledger has"
    stated = [recipe.backbone.license, *(source.license for source in recipe.data.train)]
    listed = [work.license for work in manifest.works if work.used in ("base", "train")]
    if len(listed) != len(stated) or any(
        given not in (None, found) for given, found in zip(stated, listed, strict=True)
    ):
        yield "the manifest's licences are not those that the recipe states"
