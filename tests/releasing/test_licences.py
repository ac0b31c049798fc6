import json
import struct
from pathlib import Path

import pytest

from lora_kit.data.dataset import training_rows
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.releasing.licences import Licensed, hub_license, notes, terms
from lora_kit.releasing.stated import works
from lora_kit.runs.session import open_run, open_subject
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import write_json
from lora_kit.training.scratch import scratch_arm


def work(license_: str | None, name: str = "rows", used: str = "train") -> Licensed:
    value = {"work": name, "used": used, "license": license_, "stated": "the recipe"}
    return Licensed.model_validate(value)


def base(license_: str | None) -> Licensed:
    return work(license_, "model", "base")


def found(of_base: str | None, *sources: str | None) -> list[tuple[str, str]]:
    several = [work(one, f"rows{n}") for n, one in enumerate(sources)]
    return [(note.kind, note.text) for note in notes([base(of_base), *several])]


@pytest.mark.parametrize(
    ("of_base", "of_source", "part"),
    [
        ("Apache-2.0", "CC-BY-NC-4.0", "forbids commercial use"),
        ("Apache-2.0", "CC-BY-NC-SA-4.0", "asks for the same licence"),
        ("MIT", "CC-BY-SA-4.0", "asks for the same licence"),
        ("Apache-2.0", "GPL-3.0-only", "asks for the same licence"),
        ("llama3.1", "CC-BY-SA-4.0", "asks for the same licence"),
        ("Apache-2.0", "CC-BY-ND-4.0", "forbids to share what is made of it"),
        ("CC-BY-NC-ND-4.0", "MIT", "the base model model is under CC-BY-NC-ND-4.0, which forbids"),
        ("Apache-2.0", "MIT AND CC-BY-NC-4.0", "forbids commercial use"),
    ],
)
def test_licences_that_exclude_one_another_are_a_conflict(
    of_base: str, of_source: str, part: str
) -> None:
    conflicts = [text for kind, text in found(of_base, of_source) if kind == "conflict"]
    assert any(part in text for text in conflicts), conflicts


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
def test_licences_that_go_together_are_no_conflict(of_base: str, of_source: str) -> None:
    assert [text for kind, text in found(of_base, of_source) if kind == "conflict"] == []


def test_two_sources_that_each_want_their_own_licence_are_a_conflict() -> None:
    texts = [text for _, text in found("GPL-3.0-only", "GPL-3.0-only", "CC-BY-SA-4.0")]
    assert any("each ask for their own licence" in text for text in texts)


def test_what_is_stated_nowhere_or_not_known_is_to_be_checked_and_never_guessed() -> None:
    assert found("Apache-2.0", None)[0][0] == "unknown"
    assert "stated nowhere" in found("Apache-2.0", None)[0][1]
    assert "terms are not known here" in found("Apache-2.0", "My Own Licence 3")[0][1]
    assert terms("Apache-2.0 WITH LLVM-exception") is None
    assert terms("(MIT OR Apache-2.0) AND CC-BY-4.0") is None
    # One unknown part could ask for anything.
    assert terms("MIT OR My-Own") is None


def test_what_goes_with_the_release_is_a_condition() -> None:
    assert found("gemma")[0][0] == "condition"
    kind, text = found("CC-BY-NC-4.0")[0]
    assert kind == "condition"
    assert "no commercial use of this model either" in text


def test_rows_that_only_a_loss_was_measured_on_bring_no_conflict() -> None:
    held_out = work("CC-BY-NC-4.0", used="validation")
    assert notes([base("Apache-2.0"), held_out]) == ()


def test_the_hubs_licence_is_the_bases_unless_there_is_a_conflict() -> None:
    of = base("Apache-2.0")
    assert hub_license(of, notes([of])) == {"license": "apache-2.0"}
    assert hub_license(of, notes([of, work("CC-BY-NC-4.0")])) == {}
    assert hub_license(base(None), ()) == {"license": "unknown"}
    own = base("Some Research Licence (v2)")
    assert hub_license(own, ()) == {"license": "other", "license_name": "some-research-licence-v2"}


def recipe(**backbone: object) -> Recipe:
    value = Recipe.load("quickstart").model_dump(mode="json")
    value["backbone"] |= {"model": "nobody/knows-this-model-at-all", **backbone}
    return Recipe.model_validate(value)


def test_the_alias_and_the_built_in_sources_know_their_licences() -> None:
    found = {(one.work, one.used): one for one in works(Recipe.load("quickstart"))}
    assert found["HuggingFaceTB/SmolLM2-135M-Instruct", "base"].license == "Apache-2.0"
    assert found["HuggingFaceTB/SmolLM2-135M-Instruct", "base"].hub
    assert found["stdlib-docstrings", "train"].license == "Python-2.0.1"
    assert found["python-reference", "replay"].license == "Python-2.0.1"
    assert not found["stdlib-docstrings", "train"].hub


def test_the_recipe_comes_first_and_what_is_nowhere_stays_unknown() -> None:
    assert works(recipe(license="MIT"))[0].license == "MIT"
    unknown = works(recipe())[0]
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
def test_a_directory_says_its_licence_in_its_card(
    card: str, license_: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(card)
    assert works(recipe(model=str(tmp_path)))[0].license == license_
    # The folders of this machine are nobody's business.
    assert works(recipe(model=str(tmp_path)))[0].work == tmp_path.name


def test_a_gguf_file_says_its_licence(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = works(recipe(model=str(path)))[0]
    assert (found.license, found.stated) == ("apache-2.0", "the GGUF file")
    path.write_bytes(b"GGUF" + struct.pack("<I", 3))
    assert works(recipe(model=str(path)))[0].license is None


def test_a_licence_does_not_make_it_another_backbone(tiny: Path) -> None:
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


def test_an_adapter_from_before_there_were_licences_is_still_opened(run_copy: Path) -> None:
    path = run_copy / "adapter" / "backbone.json"
    saved = json.loads(path.read_text())
    del saved["license"]
    write_json(path, saved)
    assert open_subject(run_copy / "adapter", None).backbone.spec.model == saved["model"]


def test_a_licence_stated_later_makes_no_other_training(run_copy: Path) -> None:
    def identity() -> str:
        return scratch_arm(open_run(run_copy), pytest.fail).arms[0].identity

    before = identity()
    recipe = run_copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("license: CC-BY-4.0", "license: MIT"))
    assert Recipe.load(recipe).data.train[0].license == "MIT"
    assert identity() == before


@pytest.mark.parametrize("field", ["data.train.0", "data.replay"])
def test_a_built_in_source_takes_no_other_licence(field: str) -> None:
    spec = Recipe.load("quickstart", [f"{field}.license=MIT"]).data
    with pytest.raises(DataError, match=rf"{field}\.license: .* is built in"):
        training_rows(spec, 0)
