"""Objectives on real pairs: every (data set, method, seed) is one fit and one small record, so that hours add up."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from srmir_lib.artifacts import digest, inside, read_json, write_json
from srmir_lib.conversations import text_of
from srmir_lib.data.margins import length_differences
from srmir_lib.errors import InputError
from srmir_lib.runner.manifest import git_state, machine, utc_now
from srmir_lib.runner.stage import find_root
from srmir_lib.statistics import auroc, correlation, pair_accuracy, resampled_t_interval
from srmir_lib.studies.a8_real_pairs.methods import Method, Score
from srmir_lib.studies.a8_real_pairs.pairs import PairData

FITS = 1
"""Which code made a fit: to be raised with every change after which fits or measures would come out otherwise."""


SHARES = ("pair_accuracy", "auroc")
"""Measures between 0 and 1."""


def measures(score: Score, data: PairData) -> dict[str, float]:
    """What a method reaches on test rows: pair_accuracy; auroc of the labelled answers, if there are any; gap, the mean
    of the pairs' gaps, and gap_spread and score_spread, standard deviations of gaps and of scores; length_correlation
    of a pair's gap with its difference in words."""
    sides = {side: [row[side] for row in data.test] for side in ("prompt", "chosen", "rejected")}
    chosen, rejected = (np.asarray(score(sides["prompt"], sides[side])) for side in ("chosen", "rejected"))
    longer = length_differences(*(list(map(text_of, sides[side])) for side in ("chosen", "rejected")))
    found = {
        "pair_accuracy": pair_accuracy(chosen, rejected),
        "gap": float((chosen - rejected).mean()),
        "gap_spread": float((chosen - rejected).std()),
        "score_spread": float(np.concatenate([chosen, rejected]).std()),
        "length_correlation": correlation(chosen - rejected, longer),
    }
    if data.labelled:
        labelled = {name: [row[name] for row in data.labelled] for name in ("prompt", "completion", "unsafe")}
        danger = -np.asarray(score(labelled["prompt"], labelled["completion"]))
        found["auroc"] = auroc(danger, labelled["unsafe"])
    return found


def run_study(
    load: Callable[..., PairData],
    sets: Sequence[str],
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    records: str | Path,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """A record for every data set, seed and method; `load(set, seed=seed)` gives the pairs.

    `records/<set>/<method>_<seed>.json` is written when a fit is done and not made again while its data, its `about`
    and `FITS` are the same, so an interrupted study goes on where it stopped. Fewer than two seeds, and a record that
    cannot be read, are an `InputError`.
    """
    if len(set(seeds)) < max(2, len(seeds)):
        raise InputError(f"seeds: {list(seeds)}; give at least two different whole numbers")
    rows, commit = [], git_state(find_root())
    for name in sets:
        for seed in tqdm(seeds, desc=name, disable=None, leave=False):
            data = load(name, seed=seed)
            made_of = digest(data)[:16]
            for method, how in methods.items():
                file = inside(Path(records), f"{name}/{method}_{seed}.json")
                key = {"data_sha256": made_of, "about": how.about, "fits": FITS}
                record = _on_record(file)
                if record.get("key") != key:
                    started, at = time.monotonic(), utc_now()
                    found = measures(how.fit(data, seed), data)
                    record = {"set": name, "method": method, "seed": seed, "metrics": found, "key": key, "started": at}
                    took = {"pairs": [len(part) for part in data[:3]], "seconds": time.monotonic() - started}
                    record |= took | machine() | commit
                    write_json(file, record)
                    say(f"{name}, seed {seed}, {method}: {record['seconds']:.0f} s")
                rows.append(record)
    return rows


def _on_record(file: Path) -> dict:
    record = read_json(file) if file.is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"{file}: not the record of a fit; delete it, and the fit is made again")
    return record


def seed_rows(rows: Sequence[Mapping], metric: str, against: str = "") -> list[dict]:
    """Of `run_study`'s records one row a data set and method: group, label, estimate, low, high (95 %).

    `against`: a method whose value of the same seed is subtracted; it has no row then. A data set without the metric
    has none either. See `resampled_t_interval` for the interval; that of a share ends at 0 and 1.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in (row for row in rows if metric in row["metrics"]):
        values.setdefault((row["set"], row["method"]), {})[row["seed"]] = row["metrics"][metric]
    sizes = {row["set"]: row["pairs"] for row in rows}
    found = []
    for (name, method), own in values.items():
        if method != against:
            base = values[name, against] if against else dict.fromkeys(own, 0.0)
            train, _, test = sizes[name]
            interval = resampled_t_interval([own[seed] - base[seed] for seed in own], test / train)
            if metric in SHARES and not against:
                interval = interval._replace(low=max(0.0, interval.low), high=min(1.0, interval.high))
            found.append({"group": name, "label": method, **interval._asdict()})
    return found


def seed_metrics(
    found: Mapping[str, Sequence[Mapping]], gains: Mapping[tuple[str, str], Sequence[Mapping]]
) -> dict[str, float]:
    """Flat names of what `seed_rows` found, for `metrics.json`.

    `found`, by measure: `measure/set/method`, with its ends `…/low` and `…/high`. `gains`, by measure and rival:
    `measure/set/method_minus_rival`.
    """
    metrics = {}
    for name, rows in found.items():
        for row in rows:
            key = f"{name}/{row['group']}/{row['label']}"
            metrics |= {key: row["estimate"], f"{key}/low": row["low"], f"{key}/high": row["high"]}
    for (name, rival), rows in gains.items():
        metrics |= {f"{name}/{row['group']}/{row['label']}_minus_{rival}": row["estimate"] for row in rows}
    return metrics
