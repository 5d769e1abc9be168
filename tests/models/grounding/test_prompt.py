import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyco.models.grounding.batching import Halving, buckets
from hyco.models.grounding.prompt import CLS, QUESTION, SEP, STOP, build_prompts, known_token


def test_a_prompt_is_phrases_with_a_full_stop_after_each():
    (prompt,) = build_prompts([[7, 8], [9]], longest=20)
    assert prompt.ids == [CLS, 7, 8, STOP, 9, STOP, SEP]
    assert prompt.spans == [(0, 1, 3), (1, 4, 5)]


def test_stops_inside_a_phrase_go_and_empty_phrases_are_not_asked_about():
    (prompt,) = build_prompts([[7, STOP, 8, QUESTION], [], [STOP], [9]], longest=20)
    assert prompt.ids == [CLS, 7, 8, STOP, 9, STOP, SEP]
    assert prompt.spans == [(0, 1, 3), (3, 4, 5)]
    assert build_prompts([[], [STOP]], longest=20) == []


@given(
    phrases=st.lists(st.lists(st.integers(2000, 2100), min_size=1, max_size=12), max_size=12),
    longest=st.integers(4, 20),
)
def test_every_phrase_is_in_one_prompt_whole_or_cut_to_fit(phrases, longest):
    prompts = build_prompts(phrases, longest)
    seen = [(index, prompt.ids[first:end]) for prompt in prompts for index, first, end in prompt.spans]
    assert seen == [(index, phrase[: longest - 3]) for index, phrase in enumerate(phrases)]
    for prompt in prompts:
        assert len(prompt.ids) <= longest
        assert prompt.ids.count(STOP) == len(prompt.spans)
    for one, next_one in itertools.pairwise(prompts):  # none could have taken the next one's first phrase
        _, first, end = next_one.spans[0]
        assert len(one.ids) + end - first + 1 > longest


def test_buckets_hold_like_with_like_longest_first():
    found = dict(buckets(["a", "b", "a", "a"], [1, 5, 3, 2]))
    assert found == {"a": [2, 3, 0], "b": [1]}


class Device:
    """Fits `room` items at a time."""

    def __init__(self, room):
        self.room, self.sizes = room, []

    def __call__(self, part):
        import torch

        self.sizes.append(len(part))
        if len(part) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")
        return [item * 10 for item in part]


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered():
    halving, device = Halving(8), Device(3)
    assert halving.run("big", range(10), device) == [item * 10 for item in range(10)]
    assert device.sizes == [8, 4, 2, 2, 2, 2, 2]
    device.sizes.clear()
    halving.run("big", range(4), device)
    assert device.sizes == [2, 2]
    halving.run("small", range(3), device)
    assert device.sizes[2:] == [3]


def test_one_item_that_does_not_fit_is_an_error_that_names_its_size():
    with pytest.raises(MemoryError, match=r"\(800, 1333\)"):
        Halving(4).run((800, 1333), [1, 2], Device(0))
    with pytest.raises(ValueError, match="batch_size is 0"):
        Halving(0)


@pytest.mark.parametrize(
    ("token", "known"),
    [
        ("duck", True),
        ("##s", True),
        ("a", True),
        ("##z", True),
        ("ский", True),
        ("[UNK]", False),
        ("д", False),
        ("##ж", False),
        ("犬", False),
        ("7", None),
        (",", None),
        ("##2", None),
    ],
)
def test_a_lone_letter_of_another_script_is_as_unknown_as_the_unknown_token(token, known):
    assert known_token(token, "[UNK]") is known
