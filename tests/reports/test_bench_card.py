from __future__ import annotations

from hf_stages.reports.cards.bench_card import card_with
from tests.reports.bench_result import FOUND


def test_a_new_card():
    card = card_with(FOUND, None)
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- hf_stages\n---\n\n# packed\n")
    lines = card.splitlines()
    assert "| model | weights | 1x16, ms | 32x128, tokens/s | decode, tokens/s |" in lines
    assert "| packed | 16.0 MiB | 20.0 (25.0) 3.50x | 2,048 (1,024) 1.75x | 100 (80.0) 5.00x |" in lines
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(FOUND["rows"])
    assert "On A processor, 2 threads of 4 cores; packed layers run avx2; torch 2.13.0." in card


def test_the_section_is_replaced_and_the_rest_stays():
    own = "---\nlicense: mit\n---\n# Mine\n\nwords\n"
    first = card_with(FOUND, own)
    assert first.startswith(own)
    assert first.count("## Size and speed") == 1
    second = card_with({**FOUND, "rows": FOUND["rows"][:1]}, first + "\n## After\n")
    assert second.startswith(own)
    assert second.endswith("\n## After\n")
    assert second.count("## Size and speed") == 1
    assert "bf16" not in second
    assert card_with(FOUND, second) == first + "\n## After\n"
