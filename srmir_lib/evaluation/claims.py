"""The papers' claims, written down in `params/claims.yaml`, and what one run or several towns say of each.

One run is one town: its intervals are over prompts and describe this run only, so its verdict is "inconclusive", on
whatever side of the bound the interval lies. A verdict needs several towns and `statistics.paired_t_interval`; those of
the headline claims are corrected for one another (`statistics.holm`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from srmir_lib.errors import InputError
from srmir_lib.evaluation.measures import paired_difference
from srmir_lib.statistics import STANDARD_ERRORS, holm, paired_t_interval, slope, upper_tail

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED = "reproduced", "not reproduced", "inconclusive", "not measured"
MARKS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?", NOT_MEASURED: "–"}
NOTE = "one seed: the interval is over prompts and describes this run"


LEVEL = 0.05


MOST_HEADLINES = 8


Records = Mapping[int, Mapping[str, float]]
"""The metrics of a preset's towns: seed -> {"<notebook>/<metric>": value}."""


class Claim(BaseModel):
    """A claim about metrics of the notebooks, `<notebook>/<metric>`; a town (seed) gives one number for each.

    The estimand is treatment minus control ("difference"), treatment over control ("ratio"), the treatment itself
    ("value"), or the slope of the difference against the levels of a dial, which `over` names preset by preset
    ("trend"). It should lie `above` a bound, `below` one, or `within` plus or minus one; `smallest` is the least
    distance beyond the bound that counts. Several controls, or a `*` in one, are rivals: the strongest of a town
    counts. `worlds`: the presets that decide it; none named: those that the reader asks about. `headline`: its verdict
    is corrected for those of the other headlines of its `family`. `resolves`: `STANDARD_ERRORS` of its towns, by the
    spread between development towns (`statistics.power` says how often towns show it).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    source: str
    claim: str
    treatment: str
    control: tuple[str, ...] = ()
    form: Literal["difference", "ratio", "value", "trend"] = "difference"
    side: Literal["above", "below", "within"] = "above"
    bound: float = 0.0
    smallest: float = 0.0
    worlds: tuple[str, ...] = ()
    over: dict[str, float] = {}
    headline: bool = False
    family: str = ""
    resolves: float | None = None

    @field_validator("control", mode="before")
    @classmethod
    def _one_or_several(cls, control):
        return ((control,) if control else ()) if isinstance(control, str) else control

    @model_validator(mode="after")
    def _complete(self):
        if (self.form == "value") == bool(self.control):
            raise ValueError(f"claim {self.id}: a value has no control; a difference, ratio or trend needs one")
        if self.side == "within" and (self.bound <= 0 or self.form == "ratio" or self.smallest):
            raise ValueError(f"claim {self.id}: within needs a bound above 0, no ratio and no smallest effect")
        if self.smallest < 0:
            raise ValueError(f"claim {self.id}: smallest is a distance, at least 0")
        if (self.form == "trend") != bool(self.over):
            raise ValueError(f"claim {self.id}: form trend and `over` (preset: level of the dial) need each other")
        if self.over and len(set(self.over.values())) < 2:
            raise ValueError(f"claim {self.id}: over needs two presets at least, at different levels of the dial")
        if self.over and self.worlds:
            raise ValueError(f"claim {self.id}: a trend is decided by the presets in `over`; leave `worlds` out")
        return self

    def estimates(self, records: Records) -> dict[int, float]:
        """The estimand of every town that has its metrics; of a trend, the difference at one level."""
        found, strongest = {}, min if self.side == "below" else max
        for seed, metrics in records.items():
            rivals = [value for name, value in metrics.items() if any(fnmatchcase(name, own) for own in self.control)]
            if self.treatment not in metrics or (self.control and not rivals):
                continue
            value = metrics[self.treatment]
            if self.form == "ratio" and strongest(rivals) == 0:
                raise InputError(f"claim {self.id}: {self.rivals} is 0 in seed {seed}; a ratio to it means nothing")
            if self.form != "value":
                value = value / strongest(rivals) if self.form == "ratio" else value - strongest(rivals)
            found[seed] = float(value)
        return found

    def slopes(self, found: Mapping[str, Records]) -> dict[int, float]:
        """Of a trend: per town the least-squares slope of the difference against the dial, an effect for a whole unit
        of it. `found`: preset -> its towns. Only towns that have the difference at every level."""
        at_level = [self.estimates(found.get(world, {})) for world in self.over]
        towns = sorted(set.intersection(*map(set, at_level)))
        return {town: slope(list(self.over.values()), [own[town] for own in at_level]) for town in towns}

    @property
    def rivals(self) -> str:
        """The controls, in words."""
        return " or ".join(self.control)

    @property
    def rule(self) -> str:
        """When it is reproduced, in words."""
        if self.side == "within":
            return f"within {self.bound:g}"
        return f"{self.side} {self.bound:g}" + (f" by {self.smallest:g} or more" if self.smallest else "")

    def verdict(self, low: float, high: float) -> str:
        """What the two-sided 95 % interval of the estimand says: beyond the bound, short of what counts, or neither.

        Beyond one bound is a test at 2.5 %: of forty claims without any truth one is called reproduced by chance.
        """
        if self.side == "within":
            inside, outside = -self.bound < low and high < self.bound, low > self.bound or high < -self.bound
        else:
            sign = -1 if self.side == "below" else 1
            low, high = sorted((sign * low, sign * high))
            counts = sign * self.bound + self.smallest
            inside, outside = low > sign * self.bound and (low + high) / 2 >= counts, high < counts
        return REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE

    def p_value(self, values: Sequence[float]) -> float:
        """Two-sided p of the verdict on whose side the mean lies: at most .05 where the 95 % interval gives it.

        A mean at or beyond what counts can only reproduce the claim, so the bound is tested; one short of it can only
        fail it, so that it is as large as what counts is tested. `values`: the estimand, one number a town.
        """
        values, mean = np.asarray(values, dtype=float), float(np.mean(values))
        if self.side == "within":
            low, high = upper_tail(values, -self.bound), upper_tail(-values, -self.bound)
            tail = max(low, high) if abs(mean) < self.bound else 1 - max(low, high)
        else:
            sign = -1 if self.side == "below" else 1
            counts = sign * self.bound + self.smallest
            beyond = sign * mean >= counts
            tail = upper_tail(sign * values, sign * self.bound) if beyond else upper_tail(-sign * values, -counts)
        return min(1.0, 2 * tail)


def load_claims(path: str | Path) -> list[Claim]:
    """Read `claims.yaml`: a list of claims with different ids; anything else is one line that names the claim."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: not a list of claims")
    claims = []
    for number, entry in enumerate(entries, start=1):
        try:
            claims.append(Claim(**entry))
        except (ValidationError, TypeError) as error:
            problems = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
            said = "; ".join(f"{'.'.join(map(str, p['loc']))} {p['msg']}".strip() for p in problems)
            raise InputError(f"{path}: claim {number} ({entry.get('id', 'no id')}): {said}") from error
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise InputError(f"{path}: {', '.join(twice)} stands there more than once")
    for family, headlines in Counter(claim.family for claim in claims if claim.headline).items():
        if headlines > MOST_HEADLINES:
            of = f" of the family {family}" if family else ""
            raise InputError(
                f"{path}: {headlines} headlines{of}; make it at most {MOST_HEADLINES}, each costs the others power"
            )
    return claims


def overall(rows: Sequence[Mapping]) -> str:
    """One word for a claim from its rows, one a world: reproduced, or not, if it is so wherever it was measured.

    What worlds disagree on is inconclusive: that one verdict is another than the other is no test of a difference.
    """
    measured = [row["verdict"] for row in rows if row["estimate"] is not None]
    if not measured:
        return NOT_MEASURED
    verdict = measured[0] if len(set(measured)) == 1 else INCONCLUSIVE
    return verdict if len(measured) == len(rows) else f"{verdict} (not measured everywhere)"


def decide_claims(claims: Sequence[Claim], found: Mapping[str, Records], worlds: Sequence[str]) -> list[dict]:
    """One row a claim and preset, of a trend one in all: estimate, low, high (paired t, 95 %), p, seeds, verdict, …;
    `resolved` is what `resolves` would be by the spread of these very towns.

    `found`: preset -> its towns; `worlds`: the presets that decide claims which name none. `left_out` are towns on
    record that lack a metric, or a level of the dial. A claim that fewer than two towns can speak of has no interval
    and the verdict "not measured". Headlines have their p adjusted for all of their family, measured or not, and no
    verdict where it is above .05.
    """
    rows = []
    for claim in claims:
        for places in [tuple(claim.over)] if claim.over else [(world,) for world in claim.worlds or worlds]:
            known = {seed for place in places for seed in found.get(place, {})}
            values = claim.slopes(found) if claim.over else claim.estimates(found.get(places[0], {}))
            row = {name: getattr(claim, name) for name in ("id", "source", "claim", "headline", "family")}
            row |= {"world": ", ".join(places), "treatment": claim.treatment, "control": claim.rivals}
            row |= {"form": claim.form, "rule": claim.rule, "resolves": claim.resolves}
            row |= {"seeds": list(values), "left_out": sorted(known - set(values)), "verdict": NOT_MEASURED}
            row |= dict.fromkeys(("estimate", "low", "high", "resolved", "p", "adjusted_p"))
            if len(values) > 1:
                numbers = list(values.values())
                interval = paired_t_interval(numbers)
                error = float(np.std(numbers, ddof=1)) / len(numbers) ** 0.5
                row |= {**interval._asdict(), "resolved": STANDARD_ERRORS * error, "p": claim.p_value(numbers)}
                row |= {"verdict": claim.verdict(interval.low, interval.high)}
            rows.append(row)
    for family in {claim.family for claim in claims}:
        headlines = [row for row in rows if row["headline"] and row["family"] == family]
        adjusted = holm([1.0 if row["p"] is None else row["p"] for row in headlines])
        for row, p in zip(headlines, adjusted, strict=True):
            if row["p"] is not None:
                row |= {"adjusted_p": p, "verdict": row["verdict"] if p <= LEVEL else INCONCLUSIVE}
    return rows


def sentence(row: Mapping) -> str:
    """A row of `decide_claims` as a sentence behind its mark and its id: ✓ reproduced, ✗ not reproduced, ?
    inconclusive, – not measured."""
    said = f"{MARKS[row['verdict']]} {row['id']}: {row['claim']}: "
    if row["estimate"] is None:
        return f"{said}not measured ({row['world']})"
    unit = {"ratio": "as a ratio ", "trend": "for a whole unit of its levels "}.get(row["form"], "")
    said += f"{unit}{row['estimate']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], wanted {row['rule']}: "
    said += f"{row['verdict']} in {len(row['seeds'])} towns ({row['world']})"
    if (p := row["adjusted_p"]) is not None:
        said += f", p {f'{p:.3f}' if p >= 0.001 else 'below 0.001'} by Holm"
    if row["resolves"] is not None:
        said += f"; so many towns resolve {row['resolves']:g} by the spread of development towns"
        said += f", {row['resolved']:.3f} by their own"
    left_out = ", ".join(map(str, row["left_out"]))
    return f"{said}; left out: {left_out}" if left_out else said


def claims_of_one_run(claims: Sequence[Claim], results: Mapping[str, Sequence[Mapping]], seed: int) -> list[dict]:
    """What one run says of the claims about `06_evaluation/<policy>/<measure>`: records for `claims.json`.

    `results`: policy -> rows of `evaluate_policy`; claims about policies that were not run are left out, and so are
    those that a dial or a named preset decides. A control that names several policies gives a record each, the
    strongest first and under the claim's own id. `this_run` is "for" or "against" when the interval excludes the bound,
    else "open"; `verdict` stays "inconclusive".
    """
    records = []
    for claim in claims:
        about, _, name = claim.treatment.partition("/")
        treatment, _, measure = name.partition("/")
        if about != "06_evaluation" or treatment not in results or claim.over or claim.worlds:
            continue
        rivals = [control.removeprefix(f"{about}/").partition("/")[0] for control in claim.control]
        controls = [name for name in results if any(fnmatchcase(name, rival) for rival in rivals)]
        found = {name: paired_difference(results[treatment], results[name], measure) for name in controls}
        sign = -1 if claim.side == "below" else 1
        strongest_first = sorted(found.items(), key=lambda item: sign * item[1].estimate)
        for place, (control, (estimate, low, high)) in enumerate(strongest_first):
            side = "open" if low <= claim.bound <= high else "for" if sign * (estimate - claim.bound) > 0 else "against"
            record = {"id": f"{claim.id}: {control}" if place else claim.id}
            record |= {"source": claim.source, "claim": claim.claim, "measure": measure, "treatment": treatment}
            record |= {"estimate": estimate, "low": low, "high": high, "seeds": [seed], "control": control}
            records.append(record | {"this_run": side, "verdict": INCONCLUSIVE, "note": NOTE})
    return records
