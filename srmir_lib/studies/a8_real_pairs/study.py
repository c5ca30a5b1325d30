"""Objectives on real pairs: every (data set, method, seed) is one fit and one small record, so that hours add up.

A method learns from a `PairData` and gives back a score for answers. Encoders learn the pair objectives of
`reward_models.pooled_training`, token rewards on a causal trunk those of `a1_token_rewards.training`, and on the same
trunk either design of reward model those of `RewardSettings`; a counter of words stands beside all.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from srmir_lib.artifacts import inside, read_json, write_json
from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data.margins import REFUSALS, annotate, estimate_direction, length_differences, with_margins
from srmir_lib.errors import InputError
from srmir_lib.evaluation.bag_of_words import fit_text_baseline
from srmir_lib.models.loading import fingerprint, load_trunk, pick_device, resolve_encoder
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.config import ALL, RewardSettings
from srmir_lib.reward_models.fit import SetRun, fit_sets
from srmir_lib.reward_models.pooled import EncoderSettings, PairTokenizer, PooledScorer
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.runner.manifest import git_state, machine, utc_now
from srmir_lib.runner.stage import find_root
from srmir_lib.statistics import auroc, correlation, pair_accuracy, resampled_t_interval
from srmir_lib.studies.a1_token_rewards.model import TokenRewardModel, TokenSettings
from srmir_lib.studies.a1_token_rewards.reader import Reader
from srmir_lib.studies.a1_token_rewards.training import train_token_rewards
from srmir_lib.studies.a8_real_pairs.pairs import PairData

FITS = 1
"""Which code made a fit: to be raised with every change after which fits or measures would come out otherwise."""


SHARES = ("pair_accuracy", "auroc")
"""Measures between 0 and 1."""


Score = Callable[[Sequence, Sequence], Sequence[float]]
"""Of prompts and answers (N each), one number an answer: higher is better."""


class Method:
    """A way to learn from pairs: `fit(data, seed)` returns a `Score`; `about`: the settings and weights it uses."""

    def __init__(self, about: dict, fit: Callable[[PairData, int], Score]):
        self.about, self.fit = about, fit


def words_method() -> Method:
    """TF-IDF and logistic regression on the difference of two answers, tuned on the validation pairs."""
    return Method({"method": "words"}, lambda data, seed: fit_text_baseline([], data.train, [], data.validation).score)


def encoder_method(encoder: str, reading: PairTokenizer, settings: EncoderSettings, device: str = "auto") -> Method:
    """One encoder with one output, fine-tuned on the pairs; with objective "margin" it reads Legend's margins first."""
    base = resolve_encoder(encoder)

    def fit(data: PairData, seed: int) -> Score:
        pairs = Dataset.from_list(data.train)
        if settings.objective == "margin":
            trunk, options = load_trunk(base, device), {"pooling": "mean"}
            direction = estimate_direction(*trunk, pairs["prompt"], pairs["rejected"], REFUSALS, **options)
            pairs = with_margins(pairs, annotate(*trunk, pairs, direction, **options), "unit", "clip")
        with tempfile.TemporaryDirectory() as scratch:
            pairs = pairs.add_column("category", [ALL] * len(pairs))
            fit_pooled(base, [], pairs, f"{scratch}/set", [ALL], reading, settings, seed, device, progress=False)
            scorer = PooledScorer(f"{scratch}/set", device)
        return lambda prompts, answers: scorer.score(prompts, answers)[:, 0].numpy()

    read = asdict(reading) | {"long_text": "head_tail"}  # the one way there is, by the name that is on record
    about = {"encoder": fingerprint(base), "reading": read, "settings": asdict(settings)}
    return Method(about | {"device": pick_device(device).type}, fit)


def token_method(reader: Reader, settings: TokenSettings, prompt_tokens: int, answer_tokens: int) -> Method:
    """Token rewards on the reader's causal trunk; longer prompts keep their last tokens, longer answers their first."""

    def fit(data: PairData, seed: int) -> Score:
        model = TokenRewardModel(reader, settings, seed)
        train_token_rewards(model, reader.pairs(shortened.pairs(data.train)), seed)
        return lambda prompts, answers: model.rewards(reader.answers(*shortened(prompts, answers))).numpy()

    shortened = _Shortened(reader.trunk.tokenizer, prompt_tokens, answer_tokens)
    about = {"trunk": reader.trunk.sha256, "settings": asdict(settings)}
    about |= {"device": reader.trunk.device.type, "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
    return Method(about, fit)


def reward_model_method(
    trunk: Trunk, design: str, settings: RewardSettings, prompt_tokens: int, answer_tokens: int
) -> Method:
    """One reward model on a trunk: a probe (`shared`) or a LoRA model (`separate`); texts are cut as in
    `token_method`."""
    if design not in ("shared", "separate"):
        raise InputError(f"reward_models: design {design!r} is neither shared nor separate")
    shortened = _Shortened(trunk.tokenizer, prompt_tokens, answer_tokens)

    def fit(data: PairData, seed: int) -> Score:
        cut = Dataset.from_dict(shortened.pairs(data.train) | {"category": ["pairs"] * len(data.train)})
        pairs = cut.select([at for at, row in enumerate(cut) if row["chosen"] != row["rejected"]])  # cut too short
        with tempfile.TemporaryDirectory() as scratch:
            run = SetRun(Path(scratch, "set"), [ALL], settings, design, seed=seed)
            fit_sets({"set": run}, trunk, {"train": pairs}, ["pairs"])
            models = ShadowRewardModels.load(run.folder, trunk)
        return lambda prompts, answers: models.score(*shortened(prompts, answers))[:, 0].numpy()

    idle = {"keep_gb"} | ({"probe"} if design == "separate" else set())  # they change no score
    used = {name: value for name, value in asdict(settings).items() if name not in idle}
    about = {"trunk": trunk.sha256, "design": design, "settings": used}
    about |= {"device": trunk.device.type, "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
    return Method(about, fit)


class _Shortened:
    """Conversations whose prompts keep their last and whose answers keep their first tokens."""

    def __init__(self, tokenizer, prompt_tokens: int, answer_tokens: int):
        if min(prompt_tokens, answer_tokens) < 1:
            raise InputError(f"prompt_tokens, answer_tokens: {prompt_tokens}, {answer_tokens}; both must be at least 1")
        self.tokenizer, self.last, self.first = tokenizer, slice(-prompt_tokens, None), slice(answer_tokens)

    def __call__(self, prompts: Sequence, answers: Sequence) -> tuple[list, list]:
        asked = self._cut(["\n".join(turn["content"] for turn in prompt) for prompt in prompts], self.last)
        said = self._cut(list(map(text_of, answers)), self.first)
        return [user_message(text) for text in asked], [assistant_message(text or ".") for text in said]

    def pairs(self, rows: Sequence[dict]) -> dict[str, list]:
        """Columns prompt, chosen, rejected."""
        columns = {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}
        prompts, chosen = self(columns["prompt"], columns["chosen"])
        return {"prompt": prompts, "chosen": chosen, "rejected": self(columns["prompt"], columns["rejected"])[1]}

    def _cut(self, texts: list[str], kept: slice) -> list[str]:
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.decode(row[kept]) for row in ids]


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
            digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
            for method, how in methods.items():
                file = inside(Path(records), f"{name}/{method}_{seed}.json")
                key = {"data_sha256": digest, "about": how.about, "fits": FITS}
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
