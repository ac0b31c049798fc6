"""The rules between the fields of a recipe, all of which are checked together.

Each rule is a function that yields a problem for each conflict that it finds. A rule about a single
field stands beside that field, in its section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lora_kit.recipe.conflicts import (
    adapter,
    data,
    domains,
    embedding,
    heads,
    initialisation,
    merging,
    mlm,
    objective,
    retention,
    training,
)
from lora_kit.recipe.problem import Problem
from lora_kit.recipe.sections import RecipeSections

Rule = Callable[[RecipeSections], Iterator[Problem]]

RULES: tuple[Rule, ...] = (
    data.one_kind_of_mixture,
    data.mixture_options_without_mixture,
    adapter.method_on_quantized_weights,
    adapter.target_modules_of_virtual_tokens,
    adapter.number_of_virtual_tokens,
    adapter.virtual_tokens_elsewhere,
    adapter.loraplus_without_lora,
    adapter.adalora_with_earlier_weights,
    adapter.flash_attention_in_float32,
    initialisation.unused_options,
    initialisation.needs_quantization,
    initialisation.needs_full_precision,
    initialisation.subtracted_factors,
    initialisation.patterns,
    initialisation.options_of_corda,
    training.uneven_micro_batches,
    training.decay_without_wsd,
    training.decisions_without_validation,
    training.noise_on_packed_rows,
    training.conflict_of_one_source,
    retention.ewc_without_lora,
    retention.two_ways_to_keep_weights,
    retention.token_losses_of_a_teacher,
    objective.sections_of_other_objectives,
    objective.fields_of_other_losses,
    objective.text_only,
    objective.made_for_sft,
    objective.dropout_with_reference,
    objective.kto_batches,
    objective.grpo_micro_batches,
    heads.head_without_objective,
    heads.text_head_data,
    heads.label_errors_of_classes,
    heads.changed_rows_of_heads,
    heads.text_head_retention,
    domains.alignment_of_trained_features,
    domains.covariance_of_a_step,
    heads.arms_of_a_head,
    heads.options_of_a_head,
    embedding.in_batch_negatives,
    embedding.adapter_of_embeddings,
    mlm.fields_of_decoders,
    mlm.adapter_of_masked_models,
    mlm.merge_of_masked_models,
    merging.two_equal_merges,
    merging.method_without_merge,
    merging.loftq_on_original_weights,
)


def check(recipe: RecipeSections) -> tuple[Problem, ...]:
    """Return every conflict between the fields of a recipe."""
    return tuple(problem for rule in RULES for problem in rule(recipe))
