"""``tbc prices``: what it prints, for people and for programs, and its exit codes."""

from __future__ import annotations

import json

import genai_prices
import pytest

from tbc.cli import run

SOURCE = f"genai-prices {genai_prices.__version__}"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_known_models_are_shown_with_rates_source_and_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "gpt-4o-2024-08-06", "o3", "sonar-pro"]) == 0
    out = printed(capsys)
    assert f"gpt-4o-2024-08-06: {SOURCE}: openai/gpt-4o US dollars per million tokens" in out
    assert "input $2.50 cached read $1.25 output $10.00" in out
    assert f"o3: {SOURCE}: openai/o3, since 2025-06-10" in out
    assert "each request $0.0140" in out


def test_tiers_have_a_column_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "claude-sonnet-4-5"]) == 0
    out = printed(capsys)
    assert "up to 200,000 above 200,000" in out
    assert "input $3.00 $6.00" in out
    assert "cached write for an hour $6.00 $12.00" in out


def test_an_unknown_model_is_unknown_with_a_hint_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "gpt-4o-minni", "gpt-4o", "[bold]zzzz[/bold]qqqq"]) == 1
    out = printed(capsys)
    assert "gpt-4o-minni: unknown price; the nearest known names are gpt-4o-mini" in out
    assert "[bold]zzzz[/bold]qqqq: unknown price" in out
    assert out.count("$2.50") == 1 and "$0.15" not in out


def test_json_is_exact_and_says_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "--json", "o3", "nobody-knows-this", "claude-sonnet-4-5"]) == 1
    o3, unknown, claude = json.loads(capsys.readouterr().out)
    assert o3 == {
        "model": "o3",
        "known": True,
        "usd_per_million": {"input": "2.00", "cached_read": "0.50", "output": "8.00"},
        "tiers": [],
        "usd_per_request": "0.00",
        "free": False,
        "source": f"{SOURCE}: openai/o3",
        "as_of": "2025-06-10",
    }
    assert unknown["model"] == "nobody-knows-this"
    assert unknown["known"] is False
    assert set(unknown) == {"model", "known", "nearest"}
    assert claude["tiers"][0]["above"] == 200_000
    assert claude["tiers"][0]["usd_per_million"]["input"] == "6.00"


def test_the_day_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "o3", "--on", "2025-06-09"]) == 0
    out = printed(capsys)
    assert "input $10.00" in out and "since" not in out


def test_mistakes_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices"]) == 2
    assert capsys.readouterr().err == "tbc: MODEL: name at least one, as in: tbc prices gpt-4o\n"
    assert run(["prices", "gpt-4o", "--on", "2026-02-30"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tbc import catalogue

    monkeypatch.setattr(catalogue, "installed", lambda: False)
    monkeypatch.setattr(catalogue, "find", catalogue.find.__wrapped__)
    monkeypatch.setattr(catalogue, "known_names", catalogue.known_names.__wrapped__)
    assert run(["prices", "gpt-4o"]) == 1
    out = printed(capsys)
    assert "gpt-4o: unknown price" in out
    assert 'pip install "tbc[prices]"' in out


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "prices" in capsys.readouterr().out
    assert run(["prices", "--help"]) == 0
    assert "--json" in capsys.readouterr().out
