"""Notebooks 02 and 03 run on any data that keeps the contract: here 60 made-up pairs a category and a tiny model."""

import random
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from datasets import Dataset, DatasetDict
from run_notebook import run_notebook

from srmir_lib.artifacts import load_dataset, read_json, save_dataset
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.router import PromptEncoder, Router
from srmir_lib.errors import InputError
from srmir_lib.papers.legend import NEGATIVES, SCALES
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.runner.execute import StageFailed
from srmir_lib.settings.reward_models import MarginSettings
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN

TRAINING = {
    "device": "cpu",
    "max_steps": 12,
    "learning_rate": 0.02,
    "training": {"single_learning_rate": 0.005},
    "probe": {"tokens": 0},
}


def made_up_pairs(rows: int, seed: int, test: bool = False) -> Dataset:
    """Chosen answers refuse and rejected ones comply, except for benign prompts, which are of no category."""
    draw, table = random.Random(seed), []
    for i in range(rows * (len(CATEGORIES) + 1)):
        category = [*CATEGORIES, UNKNOWN][i % (len(CATEGORIES) + 1)]
        no, yes = f"I can not, {draw.choice('abcd')}", f"first get ready {draw.choice('abcd')}, then check"
        chosen, rejected = (yes, no) if category == UNKNOWN else (no, yes)
        table.append(
            {
                "prompt": user_message(f"{category} {draw.choice('xyz')} {draw.randrange(10)}"),
                "chosen": assistant_message(chosen),
                "rejected": assistant_message(rejected),
                "category": category,
                "origin": "shuffled" if i % 9 == 0 else "policy",
                "difficulty": ("subtle" if draw.random() < 0.5 else "easy") if test else "",
                "harm_gap": draw.random() + 0.1 if test else 0.0,
                "severity": "mild" if test else "",
            }
        )
    return Dataset.from_list(table)


@pytest.fixture(scope="module")
def root(tiny_model, tmp_path_factory) -> Path:
    """A repository root with what 01 would have written."""
    root = tmp_path_factory.mktemp("root")
    data = root / "outputs" / "lab" / "01_data"
    splits = {"train": made_up_pairs(20, 0), "validation": made_up_pairs(6, 1), "test": made_up_pairs(8, 2, test=True)}
    save_dataset(DatasetDict(splits), data / "preferences")
    shown = [{"prompt": row["prompt"], "refuses": row["category"] != UNKNOWN} for row in splits["train"]]
    save_dataset(DatasetDict(train=Dataset.from_list(shown)), data / "demonstrations")
    shutil.copytree(tiny_model, data / "base_model")
    reader = PromptEncoder(base_model=str(data / "base_model"))
    embeddings = {name: reader.embed(splits[name]["prompt"], "cpu") for name in splits}
    labels = {name: list(splits[name]["category"]) for name in splits}
    router = Router.fit(
        embeddings["train"],
        labels["train"],
        embeddings["validation"],
        labels["validation"],
        [*CATEGORIES, UNKNOWN],
        reader=reader,
        trunk="cpu",
    )
    router.save(data / "router")
    return root


def execute(name: str, root: Path, **parameters) -> Path:
    """Run a notebook with `root` as the repository its stage sees; return its output folder."""
    run_notebook(name, root, **parameters)
    return root / "outputs" / "lab" / name


@pytest.fixture(scope="module")
def second(root) -> Path:
    return execute("02_shadow_reward_models", root, **TRAINING)


@pytest.fixture(scope="module")
def third(root, second) -> Path:
    return execute("03_margins", root, device="cpu", legend={"pairs": 40}, best_of=0)


def own_accuracy(folder: Path, root: Path, level: str) -> float:
    """How often a saved set is right on the test pairs of a level, one pair and model at a time; on a pair of no
    category by the calibrated mean of all."""
    models, right = ShadowRewardModels.load(folder, "cpu"), []
    for row in load_dataset(root / "outputs" / "lab" / "01_data" / "preferences")["test"]:
        if row["difficulty"] == level:
            gap = models.score([row["prompt"]], [row["chosen"]]) - models.score([row["prompt"]], [row["rejected"]])
            column = models.categories.index(row["category"]) if row["category"] in models.categories else None
            each = gap[0] / torch.tensor(models.calibration.std)
            right.append(float((each.mean() if column is None else each[column]) > 0))
    return sum(right) / len(right)


def test_02_writes_three_calibrated_sets_and_their_numbers(second, root):
    for name, models in (("shadow_rms", 7), ("cross_rms", 7), ("single_rm", 1)):
        loaded = ShadowRewardModels.load(second / name, "cpu")
        assert loaded.score(["insult x 1"], ["I can not"]).shape == (1, models)
        assert loaded.calibration is not None
    metrics = read_json(second / "metrics.json")
    assert metrics["pair_accuracy_easy_seven_gold"] > 0.8, "pairs that a word decides are learned"
    for name, folder in (("seven_gold", "shadow_rms"), ("single", "single_rm")):
        for level in ("easy", "subtle"):
            assert metrics[f"pair_accuracy_{level}_{name}"] == pytest.approx(own_accuracy(second / folder, root, level))
    assert {path.name for path in (second / "figures").iterdir()} >= {
        "probes.png",
        "heat_map.png",
        "seven_against_one.png",
    }


def test_03_writes_margins_a_calibration_and_retrained_models(third, second):
    pairs = load_dataset(third / "preferences_with_margins", columns=["margin", "category"])
    assert torch.tensor(pairs["train"]["margin"][:]).isfinite().all()
    assert ShadowRewardModels.load(third / "shadow_rms", "cpu").calibration is not None
    assert read_json(third / "shadow_rms" / "config.json")["objective"] == "margin"
    before, after = (read_json(f / "shadow_rms" / "fit.json")["key"]["settings"] for f in (second, third))
    assert before | {"objective": "margin"} == after, "only the objective may differ"
    metrics = read_json(third / "metrics.json")
    assert {path.name for path in (third / "objectives").iterdir()} == {"pcrm", "centred"}
    for name in ("plain", "margin", "pcrm", "centred"):
        assert f"pair_accuracy_subtle_{name}" in metrics
        folder = {"plain": third, "margin": third / "shadow_rms"}.get(name, third / "objectives" / name)
        spreads = Calibration.load(folder / "calibration.json").std
        assert metrics[f"score_spread_{name}"] == pytest.approx(sum(spreads) / 7)
    assert {"margin_harm_spearman_harmful", "margin_length_correlation"} <= metrics.keys()


def test_a_notebook_stops_with_one_line_when_its_input_is_missing(tmp_path):
    with pytest.raises(StageFailed, match=r"preferences: missing; run `srmir run lab 01` first"):
        execute("02_shadow_reward_models", tmp_path)


def test_the_choices_offered_are_the_choices_there_are():
    offered = {name: get_args(MarginSettings.model_fields[name].annotation) for name in ("scale", "negative")}
    assert offered == {"scale": SCALES, "negative": NEGATIVES}


def test_objectives_that_a_design_cannot_learn_are_refused_before_anything_is_trained(second, root, trunk, tmp_path):
    from srmir_lib.reward_models.fit import fit_objectives

    data = root / "outputs" / "lab" / "01_data"
    pairs = load_dataset(data / "preferences")
    where = {"centred": tmp_path / "centred", "wrong": tmp_path / "wrong"}
    wrong = {"centred": {"center_rewards_coefficient": 0.1}, "wrong": {"objektive": "margin"}}
    with pytest.raises(
        InputError, match="objectives: wrong: there is no setting objektive; there are objective, limit"
    ):
        fit_objectives(second / "shadow_rms", trunk, pairs, wrong, where)
    for bad in ({"plain": {}}, {"x": None}, {"x": {"seed": "a"}}, {"x": {"averaged_fits": "3"}}):
        with pytest.raises(InputError, match="^objectives: "):
            fit_objectives(second / "shadow_rms", trunk, pairs, bad, where)
    assert list(tmp_path.iterdir()) == []
