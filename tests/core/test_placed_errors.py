"""The place of an error stands in front of its text, once."""

from __future__ import annotations

import pytest

from hf_stages.core.placed_errors import place_errors


def placed(error, *args, **options):
    with pytest.raises(Exception) as caught, place_errors(*args, **options):  # noqa: PT011
        raise error
    return type(caught.value), str(caught.value)


def test_the_place_stands_in_front():
    assert placed(ValueError("got 3"), "stage 'a': until") == (ValueError, "stage 'a': until: got 3")
    assert placed(ValueError("got 3"), "") == (ValueError, "got 3")


def test_the_error_below_stays_its_cause():
    below = OSError("no such file")
    with pytest.raises(ValueError, match="teacher: no such file") as caught, place_errors("teacher", OSError):
        raise below
    assert caught.value.__cause__ is below


def test_only_the_errors_that_are_meant_get_a_place():
    assert placed(OSError("gone"), "teacher") == (OSError, "gone")
    assert placed(ValueError("gone"), "teacher", OSError) == (ValueError, "gone")


def test_an_error_may_stay_what_it_is():
    found = placed(ImportError("no peft"), "stage 'a'", ValueError, ImportError, keep=(ImportError,))
    assert found == (ImportError, "stage 'a': no peft")
    assert placed(ImportError("no peft"), "args", ImportError) == (ValueError, "args: no peft")


def test_a_name_is_not_said_twice():
    assert placed(ValueError("Freeze: no"), "[0] Freeze", drop="Freeze: ") == (ValueError, "[0] Freeze: no")


def test_a_key_inside_the_place_follows_after_a_dot():
    keys = ("config", "overrides")
    assert placed(ValueError("config.size: got 3"), "model", keys=keys)[1] == "model.config.size: got 3"
    assert placed(ValueError("config.json is gone"), "model", keys=keys)[1] == "model: config.json is gone"
