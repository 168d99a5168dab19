"""The examples of distillation show what they say: the student gains what it was taught."""

from __future__ import annotations

import pytest
import torch

from examples import distil_classifier, distil_decoder, distil_vit, lora_self_distillation

pytestmark = pytest.mark.usefixtures("quick_gc", "one_thread")


@pytest.fixture
def one_thread():
    """Models as small as these lose more by sharing work than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_classifier_cut_in_half_recovers_without_a_label(tmp_path):
    teacher, cut, distilled = distil_classifier.main(tmp_path, 45).values()
    assert teacher > 0.75
    assert distilled > cut + 0.03
    assert distilled > teacher - 0.05


def test_a_decoder_of_half_the_width_learns_more_from_its_teacher(tmp_path):
    teacher, before, distilled, alone = distil_decoder.main(tmp_path, 60).values()
    assert teacher < distilled < alone < before


def test_an_adapter_forgets_less_near_its_base(tmp_path):
    pytest.importorskip("peft")
    base, plain, near = lora_self_distillation.main(tmp_path, 40).values()
    assert base[0] < near[0] < plain[0]  # prose
    assert plain[1] < near[1] < base[1]  # code


def test_a_transformer_of_pictures_is_trained_and_distilled_in_one_run(tmp_path):
    teacher, cut, distilled = distil_vit.main(tmp_path, 40).values()
    assert teacher > 0.85
    assert distilled > cut + 0.1
