"""Policy files: YAML or TOML into a checked `Policy`, or every problem of the file at once."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, Literal, TypeVar

import attrs

from tbc.errors import InvalidAmountError, InvalidPolicyError, InvalidPriceError, UnknownPriceError
from tbc.files import join, read_file, read_values
from tbc.policy.choose import Policy
from tbc.policy.conditions import Condition
from tbc.policy.rules import Rule, Tier
from tbc.pricing import Prices
from tbc.reading import Reading, a_list, a_mapping, amount, by, keys_of, said, shown, text

__all__ = ["load_policy", "parse_policy"]

OnFindings = Literal["refuse", "list"]
_Part = TypeVar("_Part")


def load_policy(
    path: str | PathLike[str], *, on_findings: OnFindings = "refuse", prices: Prices | None = None
) -> Policy:
    """Read and check a policy file: TOML if its name ends in ``.toml``, else YAML.

    Parameters
    ----------
    path : str or path
        The file. docs/policy.md lists its keys.
    on_findings : {"refuse", "list"}
        Whether what is wrong with the rules is an error, or listed in `Policy.findings`.
    prices : Prices, optional
        Where models are looked up that the file has no price for. Default: ``genai-prices``, if installed.

    Raises
    ------
    InvalidPolicyError
        With every problem of the file.
    OSError
        If it cannot be read.
    """
    text, problems = read_file(path)
    if problems:
        raise InvalidPolicyError(fspath(path), problems)
    return parse_policy(text, fspath(path), on_findings=on_findings, prices=prices)


def parse_policy(
    text: str,
    path: str = "policy.yaml",
    *,
    on_findings: OnFindings = "refuse",
    prices: Prices | None = None,
) -> Policy:
    """Check the text of a policy file; `path` names it in messages, and says whether it is TOML."""
    values, problems = read_values(text, toml=path.lower().endswith(".toml"))
    if values is None and not problems:
        problems = [("", "is empty; a policy needs name, tiers and rules")]
    unreadable = {where for where, _ in problems}
    reading = _Reading()
    policy = None if values is None else reading.policy(values, on_findings, prices)
    problems += [each for each in reading.problems if each[0] not in unreadable]
    if policy is None or problems:
        problems = [(where, " ".join(what.split())) for where, what in problems]
        raise InvalidPolicyError(path, list(dict.fromkeys(problems)))
    return policy


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def _cost(value: object) -> Any:
    return Tier("-", 0, cost_usd=value).cost_usd


@attrs.frozen(kw_only=True)
class _Outline:
    name: str = attrs.field(metadata=by(text))
    degrade: bool = attrs.field(default=True, metadata=by(_yes_or_no))
    tiers: list[Any] = attrs.field(metadata=by(a_list))
    prices: dict[str, Any] = attrs.field(factory=dict, metadata=by(a_mapping))
    rules: list[Any] = attrs.field(metadata=by(a_list))


@attrs.frozen(kw_only=True)
class _TierKeys:
    name: str = attrs.field(metadata=by(text))
    latency_ms: int = attrs.field(metadata=by(amount(0)))
    model: str | None = attrs.field(default=None, metadata=by(text))
    cost_usd: Any = attrs.field(default=None, metadata=by(_cost))


@attrs.frozen(kw_only=True)
class _RuleKeys:
    when: list[Any] = attrs.field(factory=list, metadata=by(a_list))
    tier: str | None = attrs.field(default=None, metadata=by(text))
    hard_stop: bool = attrs.field(default=False, metadata=by(_yes_or_no))
    reason: str = attrs.field(metadata=by(text))


#: Where each key belongs, for those who put it elsewhere.
_PLACES = {
    **{name: f"rules[].{name}" for name in keys_of(_RuleKeys)},
    **{name: f"tiers[].{name}" for name in keys_of(_TierKeys)},
    **{name: name for name in keys_of(_Outline)},
}


class _Reading(Reading):
    """One reading of a policy file."""

    def __init__(self) -> None:
        super().__init__(_PLACES, {"name": "-", "reason": "-", "latency_ms": 0})

    def policy(self, values: Any, on_findings: OnFindings, prices: Prices | None) -> Policy | None:
        outline = self.record(values, _Outline, "")
        raw = values if isinstance(values, dict) else {}
        given = {key: raw.get(key) for key in ("tiers", "rules")}
        table = self.prices(raw["prices"]) if isinstance(raw.get("prices"), dict) else Prices(default=False)
        tiers = self.each("tiers", given["tiers"], lambda path, one: self.tier(path, one, table, prices))
        rules = self.each("rules", given["rules"], self.rule)
        if outline is None or self.problems:
            return None
        try:
            return Policy(
                name=outline.name,
                tiers=tiers,
                rules=rules,
                degrade=outline.degrade,
                on_findings=on_findings,
            )
        except InvalidPolicyError as error:
            self.problems += error.problems
        return None

    def each(self, key: str, values: Any, read: Any) -> list[Any]:
        found = enumerate(values if isinstance(values, list) else [])
        records = [read(f"{key}[{index}]", value) for index, value in found]
        return [record for record in records if record is not None]

    def prices(self, table: dict[str, Any]) -> Prices:
        try:
            return Prices(table, default=False)
        except InvalidPriceError as error:
            self.note(error.path, error.reason)
        except InvalidAmountError as error:
            self.note(error.name, said(error))
        return Prices(default=False)

    def tier(self, path: str, value: Any, table: Prices, prices: Prices | None) -> Tier | None:
        keys = self.record(value, _TierKeys, path)
        if keys is None:
            return None
        if keys.cost_usd is None and keys.model is None:
            self.note(path, "must have a model, whose price is known, or cost_usd")
            return None
        try:
            if keys.cost_usd is not None:
                return Tier(keys.name, keys.latency_ms, keys.model, cost_usd=keys.cost_usd)
            known = keys.model is not None and table.find(keys.model) is not None
            return Tier.of_model(keys.name, str(keys.model), keys.latency_ms, table if known else prices)
        except UnknownPriceError as error:
            self.note(join(path, "model"), str(error))
        except InvalidPolicyError as error:
            self.note(path, error.problems[0][1])
        return None

    def rule(self, path: str, value: Any) -> Rule | None:
        keys = self.record(value, _RuleKeys, path)
        if keys is None:
            return None
        conditions = []
        for index, written in enumerate(keys.when):
            try:
                conditions.append(Condition.parse(written))
            except InvalidPolicyError as error:
                self.note(f"{path}.when[{index}]", error.problems[0][1])
        try:
            return Rule(when=conditions, tier=keys.tier, hard_stop=keys.hard_stop, reason=keys.reason)
        except InvalidPolicyError as error:
            for where, what in error.problems:
                self.note(join(path, where) if where else path, what)
        return None
