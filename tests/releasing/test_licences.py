import json
import struct
from pathlib import Path

import pytest

from lora_kit.backbone.card import card_license
from lora_kit.data.sources import BUILT_IN
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.identity import training_fields
from lora_kit.recipe.outside import named_outside
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.licence_sources import licensed_works
from lora_kit.releasing.licences import LicensedWork, hub_license, licence_notes, licence_terms
from lora_kit.runs.session import open_run, open_subject
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import write_json
from lora_kit.training.scratch import scratch_arm
from tests.training_rows import training_rows


def work(license_: str | None, name: str = "rows", used: str = "train") -> LicensedWork:
    value = {"work": name, "used": used, "license": license_, "stated": "the recipe"}
    return LicensedWork.model_validate(value)


def base(license_: str | None) -> LicensedWork:
    return work(license_, "model", "base")


def found(of_base: str | None, *sources: str | None) -> list[tuple[str, str]]:
    several = [work(one, f"rows{n}") for n, one in enumerate(sources)]
    return [(note.kind, note.text) for note in licence_notes([base(of_base), *several])]


@pytest.mark.parametrize(
    ("of_base", "of_source", "part"),
    [
        ("Apache-2.0", "CC-BY-NC-4.0", "forbids commercial use"),
        ("Apache-2.0", "CC-BY-NC-SA-4.0", "requires the same licence for derivative works"),
        ("MIT", "CC-BY-SA-4.0", "requires the same licence for derivative works"),
        ("Apache-2.0", "GPL-3.0-only", "requires the same licence for derivative works"),
        ("llama3.1", "CC-BY-SA-4.0", "requires the same licence for derivative works"),
        ("Apache-2.0", "CC-BY-ND-4.0", "forbids sharing derivative works"),
        ("CC-BY-NC-ND-4.0", "MIT", "the base model model is under CC-BY-NC-ND-4.0, which forbids"),
        ("Apache-2.0", "MIT AND CC-BY-NC-4.0", "forbids commercial use"),
    ],
)
def test_incompatible_licences_are_a_conflict(of_base: str, of_source: str, part: str) -> None:
    conflicts = [text for kind, text in found(of_base, of_source) if kind == "conflict"]
    assert any(part in text for text in conflicts), conflicts


def test_the_terms_of_a_teacher_and_of_all_that_is_read_count() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "backbone": {"model": "smollm2-135m-instruct", "quantization": "none"},
            "data": {"train": [{"source": "/here/rows.jsonl", "license": "MIT"}]},
            "training": {
                "distillation": {"teacher": {"model": "/here/large", "license": "CC-BY-NC-4.0"}}
            },
            "retention": {
                "kl": {"source": "/here/kl.jsonl", "license": "CC0-1.0"},
                "early_stopping": {"source": "/here/texts.jsonl", "license": "GPL-3.0-only"},
            },
            "evaluation": {"suites": ["/here/quiz.yaml"]},
        }
    )
    works = licensed_works(recipe)
    assert [(one.work, one.used, one.license) for one in works[1:]] == [
        ("large", "teacher", "CC-BY-NC-4.0"),
        ("rows.jsonl", "train", "MIT"),
        ("kl.jsonl", "retention", "CC0-1.0"),
        ("texts.jsonl", "validation", "GPL-3.0-only"),
    ]
    (note,) = licence_notes(works)
    assert note.kind == "conflict"
    assert note.text.startswith("the teacher large is under CC-BY-NC-4.0, which forbids commercial")
    assert set(named_outside(recipe)) == {
        "backbone.model",
        "training.distillation.teacher.model",
        "data.train.0.source",
        "retention.kl.source",
        "retention.early_stopping.source",
        "evaluation.suites.0",
    }


def test_texts_without_labels_and_writers_are_on_the_card() -> None:
    def texts(name: str) -> list[dict[str, str]]:
        return [{"source": f"/here/{name}.jsonl", "license": "CC-BY-NC-4.0"}]

    recipe = Recipe.model_validate(
        {
            "name": "x",
            "backbone": {"model": "all-minilm-l6-v2"},
            "data": {
                "train": [{"source": "/here/rows.jsonl", "license": "MIT"}],
                "unlabeled": {"texts": texts("pool")},
                "reweight": {"target": texts("target")},
                "augmentation": {
                    "paraphrase": {"writer": {"model": "/here/large", "license": "CC-BY-NC-4.0"}}
                },
            },
            "training": {
                "objective": "classification",
                "domain_alignment": {"target": texts("domain")},
            },
        }
    )
    works = licensed_works(recipe)
    assert [(one.work, one.used) for one in works[1:]] == [
        ("large", "writer"),
        ("rows.jsonl", "train"),
        ("pool.jsonl", "train"),
        ("target.jsonl", "train"),
        ("domain.jsonl", "train"),
    ]
    assert {note.text.split(" is under")[0] for note in licence_notes(works)} >= {
        "the writer large",
        "the source pool.jsonl",
        "the source domain.jsonl",
    }
    # A licence may be stated after the training.
    stated, document = training_fields(recipe.model_dump(mode="json")), recipe.model_dump()
    document["data"]["unlabeled"]["texts"][0]["license"] = None
    document["data"]["augmentation"]["paraphrase"]["writer"]["license"] = None
    document["training"]["domain_alignment"]["target"][0]["license"] = None
    changed = Recipe.model_validate(document)
    assert training_fields(changed.model_dump(mode="json")) == stated


@pytest.mark.parametrize(
    ("of_base", "of_source"),
    [
        ("Apache-2.0", "Python-2.0.1"),
        ("apache-2.0", "CC-BY-4.0"),
        ("CC-BY-SA-4.0", "CC-BY-SA-3.0"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("CC-BY-NC-4.0", "CC-BY-NC-4.0"),
        ("Apache-2.0", "MIT OR GPL-3.0-only"),
    ],
)
def test_compatible_licences_are_no_conflict(of_base: str, of_source: str) -> None:
    assert [text for kind, text in found(of_base, of_source) if kind == "conflict"] == []


def test_two_share_alike_sources_with_different_licences_are_a_conflict() -> None:
    texts = [text for _, text in found("GPL-3.0-only", "GPL-3.0-only", "CC-BY-SA-4.0")]
    assert any("each require their own licence for derivative works" in text for text in texts)


def test_a_missing_or_unknown_licence_is_reported_and_never_guessed() -> None:
    assert found("Apache-2.0", None)[0][0] == "unknown"
    assert "is not stated" in found("Apache-2.0", None)[0][1]
    assert "terms lora_kit does not know" in found("Apache-2.0", "My Own Licence 3")[0][1]
    assert licence_terms("Apache-2.0 WITH LLVM-exception") is None
    assert licence_terms("(MIT OR Apache-2.0) AND CC-BY-4.0") is None
    # An unknown part could have any terms.
    assert licence_terms("MIT OR My-Own") is None


def test_terms_that_apply_to_the_release_are_a_condition() -> None:
    assert found("gemma")[0][0] == "condition"
    kind, text = found("CC-BY-NC-4.0")[0]
    assert kind == "condition"
    assert "forbids commercial use of this model too" in text


def test_validation_rows_cause_no_conflict() -> None:
    held_out = work("CC-BY-NC-4.0", used="validation")
    assert licence_notes([base("Apache-2.0"), held_out]) == ()


def test_the_licence_on_the_hub_is_that_of_the_base_without_a_conflict() -> None:
    of = base("Apache-2.0")
    assert hub_license(of, licence_notes([of])) == {"license": "apache-2.0"}
    assert hub_license(of, licence_notes([of, work("CC-BY-NC-4.0")])) == {}
    assert hub_license(base(None), ()) == {"license": "unknown"}
    own = base("Some Research Licence (v2)")
    assert hub_license(own, ()) == {"license": "other", "license_name": "some-research-licence-v2"}


def recipe(**backbone: object) -> Recipe:
    value = Recipe.load("quickstart").model_dump(mode="json")
    value["backbone"] |= {"model": "nobody/knows-this-model-at-all", **backbone}
    return Recipe.model_validate(value)


@pytest.mark.parametrize("source", BUILT_IN)
def test_every_built_in_source_has_a_licence(source: str) -> None:
    value = recipe().model_dump(mode="json")
    value["data"]["train"] = [{"source": source}]
    (work,) = [one for one in licensed_works(Recipe.model_validate(value)) if one.used == "train"]
    assert work.license in ("Python-2.0.1", "Apache-2.0")
    assert not work.hub


def test_aliases_and_built_in_sources_have_licences() -> None:
    found = {(one.work, one.used): one for one in licensed_works(Recipe.load("quickstart"))}
    assert found["HuggingFaceTB/SmolLM2-135M-Instruct", "base"].license == "Apache-2.0"
    assert found["HuggingFaceTB/SmolLM2-135M-Instruct", "base"].hub
    assert found["stdlib-docstrings", "train"].license == "Python-2.0.1"
    assert found["python-reference", "replay"].license == "Python-2.0.1"
    assert not found["stdlib-docstrings", "train"].hub


def test_the_recipe_takes_precedence_and_a_missing_licence_stays_unknown() -> None:
    assert licensed_works(recipe(license="MIT"))[0].license == "MIT"
    unknown = licensed_works(recipe())[0]
    assert (unknown.license, unknown.stated) == (None, "nowhere")


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ("---\nlicense: cc-by-nc-4.0\n---\n# model\n", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit AND apache-2.0"),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("license: mit\n\n---\n", None),
        ("# a card without front matter\n", None),
    ],
)
def test_the_licence_of_a_directory_is_read_from_its_card(
    card: str, license_: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(card)
    assert licensed_works(recipe(model=str(tmp_path)))[0].license == license_
    # Local folders must not be published.
    assert licensed_works(recipe(model=str(tmp_path)))[0].work == tmp_path.name


def test_the_licence_of_a_gguf_file_is_read(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = licensed_works(recipe(model=str(path)))[0]
    assert (found.license, found.stated) == ("apache-2.0", "the GGUF file")
    path.write_bytes(b"GGUF" + struct.pack("<I", 3))
    assert licensed_works(recipe(model=str(path)))[0].license is None


def test_a_licence_does_not_change_the_fingerprint(tiny: Path) -> None:
    from lora_kit.backbone.fingerprint import fingerprint, weight_files
    from lora_kit.backbone.load import compute_dtype

    one, other = (
        BackboneSpec(model=str(tiny), quantization="none", dtype="float32", license=license_)
        for license_ in (None, "MIT")
    )
    files = weight_files(tiny)
    assert (
        fingerprint(tiny, files, one, compute_dtype(one)).digest
        == fingerprint(tiny, files, other, compute_dtype(other)).digest
    )


def test_an_adapter_without_a_license_field_is_opened(run_copy: Path) -> None:
    path = run_copy / "adapter" / "backbone.json"
    saved = json.loads(path.read_text())
    del saved["license"]
    write_json(path, saved)
    assert open_subject(run_copy / "adapter", None).backbone.spec.model == saved["model"]


def test_a_licence_stated_later_does_not_change_the_identity(run_copy: Path) -> None:
    def identity() -> str:
        return scratch_arm(open_run(run_copy), pytest.fail).arms[0].identity

    before = identity()
    recipe = run_copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("license: CC-BY-4.0", "license: MIT"))
    assert Recipe.load(recipe).data.train[0].license == "MIT"
    assert identity() == before


@pytest.mark.parametrize("field", ["data.train.0", "data.replay"])
def test_the_licence_of_a_built_in_source_cannot_be_set(field: str) -> None:
    spec = Recipe.load("quickstart", [f"{field}.license=MIT"]).data
    with pytest.raises(DataError, match=rf"{field}\.license: .* is built in"):
        training_rows(spec, 0)


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ("\ufeff---\nlicense: mit\n---\n", "mit"),
        ("---\r\nlicense: other\r\nlicense_name: own-1\r\n---\r\ntext", "own-1"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit AND cc0-1.0"),
        ("---\nlicense: unknown\n---\n", None),
        ("---\n- license\n---\n", None),
        ("license: mit\n", None),
    ],
)
def test_the_licence_of_a_card_is_in_its_header(
    card: str, license_: str | None, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert card_license(tmp_path) == license_
    assert card_license(tmp_path / "missing") is None
