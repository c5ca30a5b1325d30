"""The papers' claims, written down in `params/claims.yaml`, and what one run or several seeds say of each.

One run is one seed: its intervals are over prompts and describe this run only, so its verdict is "inconclusive", on
whatever side of the bound the interval lies. A verdict needs several seeds and `statistics.paired_t_interval`.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from srmir_lib.errors import InputError
from srmir_lib.evaluation.measures import paired_difference
from srmir_lib.statistics import paired_t_interval

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED = "reproduced", "not reproduced", "inconclusive", "not measured"
PLANTED = "planted"
NOTE = "one seed: the interval is over prompts and describes this run"


class Claim(BaseModel):
    """A claim about metrics of the notebooks, `<notebook>/<metric>`; a seed gives one number for each.

    The estimand is treatment minus control ("difference"), treatment over control ("ratio") or the treatment itself
    ("value"). It should lie `above` a bound, `below` one, or `within` plus or minus one; `smallest` is the least
    distance beyond the bound that counts. A `*` in the control names several rivals, of which the strongest counts.
    `worlds`: the presets that can speak of it; none named: all. `planted`: true by construction of the lab, so that
    finding it reproduces nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    source: str
    claim: str
    treatment: str
    control: str = ""
    form: Literal["difference", "ratio", "value"] = "difference"
    side: Literal["above", "below", "within"] = "above"
    bound: float = 0.0
    smallest: float = 0.0
    worlds: tuple[str, ...] = ()
    planted: bool = False

    @model_validator(mode="after")
    def _complete(self):
        if (self.form == "value") == bool(self.control):
            raise ValueError(f"claim {self.id}: a value has no control; a difference or ratio needs one")
        if self.side == "within" and (self.bound <= 0 or self.form == "ratio" or self.smallest):
            raise ValueError(f"claim {self.id}: within needs a bound above 0, no ratio and no smallest effect")
        if self.smallest < 0:
            raise ValueError(f"claim {self.id}: smallest is a distance, at least 0")
        return self

    def estimates(self, records: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
        """The estimand of every seed that has its metrics."""
        found, strongest = {}, min if self.side == "below" else max
        for seed, metrics in records.items():
            controls = [value for name, value in metrics.items() if fnmatchcase(name, self.control)]
            if self.treatment not in metrics or (self.control and not controls):
                continue
            value = metrics[self.treatment]
            if self.form == "ratio" and strongest(controls) == 0:
                raise InputError(f"claim {self.id}: {self.control} is 0 in seed {seed}; a ratio to it means nothing")
            if self.form != "value":
                value = value - strongest(controls) if self.form == "difference" else value / strongest(controls)
            found[seed] = float(value)
        return found

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
        return (PLANTED if self.planted else REPRODUCED) if inside else NOT_REPRODUCED if outside else INCONCLUSIVE


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


def decide_claims(claims: Sequence[Claim], records: Mapping[int, Mapping[str, float]], world: str = "") -> list[dict]:
    """One row a claim: id, source, claim, world, estimate, low, high (paired t, 95 %), seeds, control, verdict.

    A claim that fewer than two seeds can speak of has no interval and the verdict "not measured"; one that is made for
    other worlds than this has no row.
    """
    rows = []
    for claim in (claim for claim in claims if not claim.worlds or world in claim.worlds):
        values = claim.estimates(records)
        row = {"id": claim.id, "source": claim.source, "claim": claim.claim, "world": world, "seeds": list(values)}
        row |= {"treatment": claim.treatment, "control": claim.control, "estimate": None, "low": None, "high": None}
        row["verdict"] = NOT_MEASURED
        if len(values) > 1:
            found = np.array(list(values.values()))
            interval = paired_t_interval(found, np.zeros(len(found)))
            row |= {**interval._asdict(), "verdict": claim.verdict(interval.low, interval.high)}
        rows.append(row)
    return rows


def claims_of_one_run(claims: Sequence[Claim], results: Mapping[str, Sequence[Mapping]], seed: int) -> list[dict]:
    """What one run says of the claims about `06_evaluation/<policy>/<measure>`: records for `claims.json`.

    `results`: policy -> rows of `evaluate_policy`; claims about policies that were not run are left out. A control that
    names several policies gives a record each, the strongest first and under the claim's own id. `this_run` is "for"
    or "against" when the interval excludes the bound, else "open"; `verdict` stays "inconclusive".
    """
    records = []
    for claim in claims:
        about, _, name = claim.treatment.partition("/")
        treatment, _, measure = name.partition("/")
        rivals = claim.control.removeprefix(f"{about}/").partition("/")[0]
        if about != "06_evaluation" or treatment not in results:
            continue
        controls = [name for name in results if fnmatchcase(name, rivals)]
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
