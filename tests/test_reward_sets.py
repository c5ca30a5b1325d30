"""Sets of reward models trained beside each other: each comes out as if it had been alone."""

import pytest
import torch
from test_reward_settings import of_preset
from test_shared_rewards import preferences

from srmir_lib.reward_models import fit as reward_sets
from srmir_lib.reward_models.fit import SetRun, budgets, fit_sets, other_differences
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.reward_models.shared import fit_shared
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe
from srmir_lib.taxonomy import ALL, UNKNOWN

CATEGORIES = ["insult", "crimes"]
SETTINGS = RewardSettings(max_steps=4, batch_size=4, learning_rate=1e-2, max_length=64, cross_ratio=0.5)
TEXTS = (["insult 1", "crimes 30"], ["no", "yes 3"])


@pytest.fixture(scope="module")
def pairs() -> dict:
    return preferences()


@pytest.fixture
def two_jobs(monkeypatch):
    """Two at a time, and the same arithmetic as in turn."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


def test_sets_trained_side_by_side_are_what_they_are_alone(trunk, tiny_model, pairs, tmp_path, two_jobs):
    shorter = SETTINGS.changed(probe=SizedProbe(text="{category} ?"))
    runs = {
        "own": SetRun(tmp_path / "own", CATEGORIES, SETTINGS),
        "one": SetRun(tmp_path / "one", [ALL], SETTINGS, seed=1),
        "cross": SetRun(tmp_path / "cross", CATEGORIES, shorter, training="cross"),
    }
    together = fit_sets(runs, trunk, pairs, CATEGORIES)
    assert list(together) == list(runs)
    for name, run in runs.items():
        alone = tmp_path / "alone" / name
        how = run.settings, run.seed, run.training, CATEGORIES
        wanted = fit_shared(PrefilledPairs(trunk, pairs["train"], run.settings), alone, run.categories, *how)
        for model in run.categories:
            losses = [[row["loss"] for row in found[model]] for found in (together[name], wanted)]
            assert losses[0] == pytest.approx(losses[1], abs=1e-5), name
        scores = [ShadowRewardModels.load(where, "cpu").score(*TEXTS) for where in (run.folder, alone)]
        torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_a_twin_has_the_same_weights_and_layers_of_its_own(trunk, pairs):
    states = PrefilledPairs(trunk, pairs["train"], SETTINGS)
    twin = states.with_own_modules()
    ours, theirs = (dict(one.trunk.model.named_parameters()) for one in (states, twin))
    assert ours and all(theirs[name] is weight for name, weight in ours.items())
    assert not {*trunk.model.modules()} & {*twin.trunk.model.modules()}
    twin.select([0, 1])
    assert states.cached and states.cached is twin.cached, "what one of them has read, none reads again"


def test_a_finished_set_is_kept_and_the_order_is_that_of_the_runs(trunk, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_sets, "fit_separate", lambda pairs, folder, *rest: {"made": str(folder)})
    runs = {
        "separate": SetRun(tmp_path / "separate", CATEGORIES, SETTINGS, "separate"),
        "shared": SetRun(tmp_path / "shared", CATEGORIES, SETTINGS),
    }
    first = fit_sets(runs, trunk, pairs)
    assert list(first) == ["separate", "shared"] and first["separate"] == {"made": str(tmp_path / "separate")}
    written = (tmp_path / "shared" / "fit.json").stat().st_mtime_ns
    monkeypatch.setattr(PrefilledPairs, "_read", lambda *_: pytest.fail("finished sets need no reading"))
    assert fit_sets(runs, trunk, pairs) == first
    assert (tmp_path / "shared" / "fit.json").stat().st_mtime_ns == written
    assert fit_sets({}, trunk, pairs) == {}


def test_a_lora_rival_learns_from_the_pairs_of_its_probe(trunk, pairs, tmp_path, monkeypatch):
    """Pairs of no category, of which each model sees a share of its own: both draw the same ones."""
    labels = [label if row % 4 else UNKNOWN for row, label in enumerate(pairs["train"]["category"])]
    pairs = {"train": pairs["train"].remove_columns("category").add_column("category", labels)}
    seen = {}

    def fit(pairs, folder, categories, settings, seed, training, competence, progress):
        seen.update(pairs.rows(categories, settings, training, seed, competence))

    monkeypatch.setattr(reward_sets, "fit_separate", fit)
    monkeypatch.setattr(reward_sets.ShadowRewardModels, "load", lambda *_: None)
    settings = of_preset("lab", lora=["crimes"])
    reward_sets.fit_lora_rivals(settings, trunk, pairs, CATEGORIES, tmp_path)
    _, seven, _, training = settings.sets(CATEGORIES)["shadow_rms"]
    probes = PrefilledPairs(trunk, pairs["train"], seven).rows(CATEGORIES, seven, training, settings.seed)
    assert seen == {"crimes": probes["crimes"]} and any(labels[row] == UNKNOWN for row in seen["crimes"])


def test_budgets_are_sums_over_the_models_and_other_differences_are_named(trunk, pairs, tmp_path):
    changed = SETTINGS.changed(center_rewards_coefficient=0.1, learning_rate=2e-2)
    runs = {
        "plain": SetRun(tmp_path / "plain", CATEGORIES, SETTINGS),
        "changed": SetRun(tmp_path / "changed", [ALL], changed),
    }
    fit_sets(runs, trunk, pairs, CATEGORIES)
    last = {"insult": 0.5, "crimes": 1.0, ALL: 0.25}
    history = {name: {of: [{"accuracy": 0.0}, {"accuracy": last[of]}] for of in runs[name].categories} for name in runs}
    of_both = sum(label in CATEGORIES for label in pairs["train"]["category"])
    common = {"pairs/update": 4, "pairs seen": of_both}
    assert budgets(runs, history) == [
        {"set": "plain", "models": 2, "updates": 8, **common, "accuracy, last batch": 0.75},
        {"set": "changed", "models": 1, "updates": 4, **common, "accuracy, last batch": 0.25},
    ]
    asked = {"center_rewards_coefficient": 0.1, "seed": 3}
    folders = runs["changed"].folder, runs["plain"].folder
    assert other_differences(*folders, asked) == ["learning_rate"]
    assert other_differences(*folders, asked | {"learning_rate": 2e-2}) == []
