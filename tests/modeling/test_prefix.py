"""Encoded beginnings of prompts: shared by rows without copies, and unchanged by them."""

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from lora_kit.backbone.load import Backbone
from lora_kit.modeling.prefix import Prefix, common_beginning, encode_prefix

IDS = tuple(range(5, 17))
CPU = torch.device("cpu")


def encoded(backbone: Backbone) -> Prefix:
    with torch.no_grad():
        return encode_prefix(backbone.model, IDS, CPU)


def test_the_beginning_of_all_prompts() -> None:
    assert common_beginning([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == (1, 2)
    assert common_beginning([[1, 2], [3]]) == ()
    assert common_beginning([[1, 2], [1, 2]]) == (1, 2)


def test_rows_share_the_keys_and_leave_them_as_they_are(tiny_backbone: Backbone) -> None:
    prefix = encoded(tiny_backbone)
    before = [layer.keys.clone() for layer in prefix.cache.layers]
    cache = prefix.repeated(3)
    own, shared = cache.layers[0].keys, prefix.cache.layers[0].keys
    assert own.shape[0] == 3
    assert own.data_ptr() == shared.data_ptr()
    with torch.no_grad():
        tiny_backbone.model(input_ids=torch.tensor([[3], [4], [5]]), past_key_values=cache)
    assert cache.get_seq_length() == len(IDS) + 1
    after = [layer.keys for layer in prefix.cache.layers]
    assert all(map(torch.equal, before, after))


def test_rows_with_padding_leave_out_the_end(tiny_backbone: Backbone) -> None:
    prefix = encoded(tiny_backbone)
    cache = prefix.shifted([0, 4])
    for own, shared in zip(cache.layers, prefix.cache.layers, strict=True):
        assert torch.equal(own.keys[0], shared.keys[0])
        assert torch.equal(own.keys[1][:, 4:], shared.keys[0][:, : len(IDS) - 4])
        assert torch.equal(own.values[1][:, 4:], shared.values[0][:, : len(IDS) - 4])
    assert cache.get_seq_length() == len(IDS)


def test_other_caches_are_copied(tiny_backbone: Backbone) -> None:
    prefix = encoded(tiny_backbone)
    assert prefix.is_plain
    window = DynamicSlidingWindowLayer(sliding_window=6)
    window.update(prefix.cache.layers[0].keys, prefix.cache.layers[0].values)
    prefix.cache.layers[0] = window
    assert not prefix.is_plain
    cache = prefix.repeated(2)
    assert type(cache.layers[0]) is DynamicSlidingWindowLayer
    assert cache.layers[0].keys.data_ptr() != window.keys.data_ptr()
