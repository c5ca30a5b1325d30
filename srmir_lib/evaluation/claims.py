"""The papers' claims, written down before the results, and what the recorded seeds say of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from srmir_lib.errors import InputError
from srmir_lib.statistics import paired_t_interval

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED = "reproduced", "not reproduced", "inconclusive", "not measured"


class SeedClaim(BaseModel):
    """A claim about metrics of the notebooks, `<notebook>/<metric>`; a seed gives one number for each.

    The estimand is treatment minus control ("difference"), treatment over control ("ratio") or the treatment itself
    ("value"). It should lie `above` a bound, `below` one, or `within` plus or minus one; `smallest` is the least
    distance beyond the bound that counts. `worlds`: the presets that can speak of it; none named: all.
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
        wanted = [self.treatment] + ([self.control] if self.control else [])
        rows = {seed: [of[name] for name in wanted] for seed, of in records.items() if all(n in of for n in wanted)}
        if self.form == "ratio" and (zero := [seed for seed, (_, control) in rows.items() if control == 0]):
            raise InputError(f"claim {self.id}: {self.control} is 0 in seed {zero[0]}; a ratio to it means nothing")
        combine = {"difference": lambda a, b: a - b, "ratio": lambda a, b: a / b, "value": lambda a: a}[self.form]
        return {seed: float(combine(*values)) for seed, values in rows.items()}

    def verdict(self, low: float, high: float) -> str:
        """What a 95 % interval of the estimand says: beyond the bound, short of what counts, or neither."""
        if self.side == "within":
            inside, outside = -self.bound < low and high < self.bound, low > self.bound or high < -self.bound
            return REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
        if self.side == "below":
            low, high, bound = -high, -low, -self.bound
        else:
            bound = self.bound
        if low > bound and (low + high) / 2 >= bound + self.smallest:
            return REPRODUCED
        return NOT_REPRODUCED if high < bound + self.smallest else INCONCLUSIVE


def load_claims(path: str | Path) -> list[SeedClaim]:
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
            claims.append(SeedClaim(**entry))
        except (ValidationError, TypeError) as error:
            problems = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
            said = "; ".join(f"{'.'.join(map(str, p['loc']))} {p['msg']}".strip() for p in problems)
            raise InputError(f"{path}: claim {number} ({entry.get('id', 'no id')}): {said}") from error
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise InputError(f"{path}: {', '.join(twice)} stands there more than once")
    return claims


def overall(rows: Sequence[Mapping]) -> str:
    """One word for a claim from its rows, one a world: reproduced only if it is in every world that was measured."""
    measured = [row["verdict"] for row in rows if row["estimate"] is not None]
    if not measured:
        return NOT_MEASURED
    if len(set(measured)) > 1:
        return "differs"
    return measured[0] if len(measured) == len(rows) else f"{measured[0]} (not measured everywhere)"


def decide_claims(
    claims: Sequence[SeedClaim], records: Mapping[int, Mapping[str, float]], world: str = ""
) -> list[dict]:
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
