"""The `shared` design: equal to PEFT's Activated LoRA, blind to padding and batch, trained as K separate runs are."""

import gc
import math
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fit_set import fit_set
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import assistant_message, conversation_ids, user_message
from srmir_lib.errors import InputError
from srmir_lib.lab.corpus import MIX, corpus
from srmir_lib.lab.grammar import ANY_WRONG_QUESTION, CHECK_QUESTION
from srmir_lib.lab.world import NAMES, draw_world
from srmir_lib.models.batching import by_length
from srmir_lib.models.kv_cache import PrefilledKV
from srmir_lib.models.loading import load_policy, load_tokenizer, share_weights
from srmir_lib.models.small import build_tokenizer
from srmir_lib.models.trunk import Trunk, shared_lengths
from srmir_lib.reward_models import shared
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.config import load_settings, pairs_seen
from srmir_lib.reward_models.pairs import pair_batches
from srmir_lib.reward_models.prefilled_pairs import PrefilledPairs
from srmir_lib.reward_models.probes import Probes, _in_turn, block_mask, probe_questions
from srmir_lib.reward_models.shadow import ShadowRewardModels, score_sets, trunk_for
from srmir_lib.reward_models.shared import _train, clip_each, train_probes, untrained
from srmir_lib.runner.notebook import Notebook
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe
from srmir_lib.taxonomy import ALL

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ["insult", "crimes", "privacy"]
SETTINGS = RewardSettings(
    max_steps=25, batch_size=8, learning_rate=1e-2, lora_rank=4, lora_alpha=8, max_length=64, cross_ratio=0.5
)
IDS = [
    [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 21],
    [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 30, 31, 32, 33, 34],
    [5, 6, 7],
    list(range(40, 70)),
    [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 50],
]
GROUPS = ["a", "a", "b", "c", "a"]  # three rows have ten tokens in common
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
DECODERS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
}


def preferences() -> dict:
    """Insult and privacy pairs prefer "no", crimes pairs prefer "yes": models that must come out opposite."""
    wanted = {"insult": ("no", "yes"), "crimes": ("yes", "no"), "privacy": ("no", "yes")}
    rows = [
        {
            "prompt": user_message(f"{category} {i}"),
            "chosen": assistant_message(f"{chosen} {i}"),
            "rejected": assistant_message(f"{rejected} {i}"),
            "category": category,
        }
        for i in range(24)
        for category, (chosen, rejected) in wanted.items()
    ]
    return {"train": Dataset.from_list(rows)}


def moved(probes: Probes, scale: float = 0.1) -> Probes:
    """Probes as after training: a fresh one has B = 0, and its adapter does nothing."""
    generator = torch.Generator().manual_seed(1)
    for up in probes.up.values():
        up.data.normal_(0, scale, generator=generator)
    return probes


def make(name: str, tokenizer, settings: SizedProbe = SizedProbe(), batch_tokens: int = 64):  # noqa: B008
    """A random decoder of that family, its trunk, and probes that are not at their start."""
    torch.manual_seed(0)
    model = DECODERS[name]().eval()
    model.resize_token_embeddings(len(tokenizer))
    trunk = Trunk(model, tokenizer, batch_tokens=batch_tokens)
    return model, trunk, moved(Probes(trunk, CATEGORIES, settings))


@torch.no_grad()
def scores_of(trunk: Trunk, probes: Probes, ids, groups=None, columns=None) -> torch.Tensor:
    out = torch.zeros(len(ids), len(CATEGORIES)) if columns is None else torch.zeros(len(ids))
    for rows, states in trunk.prefill(ids, groups):
        out[rows] = probes(trunk, states, None if columns is None else columns[rows])
    return out


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """(folder of a trained set, its history)."""
    folder = tmp_path_factory.mktemp("set") / "shadow_rms"
    return folder, fit_set(tiny_model, preferences(), folder, CATEGORIES, SETTINGS)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained set that a test may damage."""
    return shutil.copytree(trained[0], tmp_path / "shadow_rms")


@pytest.mark.parametrize("name", DECODERS)
def test_scores_equal_pefts_activated_lora(name, tokenizer, tmp_path):
    """PEFT runs each adapter over the whole text with the probe behind it; we run the trunk once for all of them."""
    from peft import PeftModel

    model, trunk, probes = make(name, tokenizer)
    ours = scores_of(trunk, probes, IDS, GROUPS)
    probes.save(tmp_path, model.base_model_prefix, "base")
    peft = PeftModel.from_pretrained(model, tmp_path / CATEGORIES[0], adapter_name=CATEGORIES[0])
    for category in CATEGORIES[1:]:
        peft.load_adapter(tmp_path / category, category)
    for column, category in enumerate(CATEGORIES):
        peft.set_adapter(category)
        head = load_file(tmp_path / category / "head.safetensors")["score.weight"][0]
        for row, ids in enumerate(IDS):
            text = torch.tensor([ids + probes.question(column)])
            with torch.no_grad():
                last = peft(input_ids=text, output_hidden_states=True).hidden_states[-1][0, -1]
            assert float(last @ head) == pytest.approx(float(ours[row, column]), abs=1e-5), f"{category}, row {row}"


def test_scores_do_not_depend_on_batch_grouping_or_padding(tokenizer):
    _, trunk, probes = make("qwen2", tokenizer)
    alone = torch.cat([scores_of(trunk, probes, [ids]) for ids in IDS])
    assert alone.std() > 0.01, "scores that are all alike would pass any comparison"
    for batch_tokens in (1, 24, 4096):
        trunk.batch_tokens = batch_tokens
        for groups in (None, GROUPS, ["a"] * 5):
            assert torch.allclose(scores_of(trunk, probes, IDS, groups), alone, atol=1e-5), (batch_tokens, groups)
    columns = torch.tensor([2, 0, 1, 1, 0])
    assert torch.allclose(scores_of(trunk, probes, IDS, GROUPS, columns), alone[torch.arange(5), columns], atol=1e-5)


def test_the_last_layer_stops_early_and_changes_nothing(tokenizer):
    """With `layer` the last layer runs to its end; the states that probes read are the same."""
    model, trunk, probes = make("qwen2", tokenizer)
    for (rows, whole), (same, states) in zip(trunk.prefill(IDS, layer=-1), trunk.prefill(IDS), strict=True):
        assert rows == same and torch.allclose(probes(trunk, whole), probes(trunk, states), atol=1e-6)
    calls = []
    model.model.layers[-1].mlp.register_forward_hook(lambda *_: calls.append(1))
    list(trunk.prefill(IDS))
    assert not calls, "the last layer's MLP was run for states that nobody reads"


def test_beginnings_are_let_go_before_the_next_are_read(tokenizer, monkeypatch):
    """Else two chunks of prompts are in memory at once where there are many, and one where there are few."""
    _, trunk, probes = make("qwen2", tokenizer, batch_tokens=40)
    made, forward = [], Trunk._forward

    def noted(self, ids, layer, starts=None, before=None, at=None):
        if before is None:
            gc.collect()
            assert not [states for states in made if states() is not None], "the beginnings before are still here"
        states = forward(self, ids, layer, starts, before, at)
        made.extend([weakref.ref(states)] if before is None else [])
        return states

    monkeypatch.setattr(Trunk, "_forward", noted)
    ids = [[*range(start, start + 10), last] for start in (5, 25, 45) for last in (70, 71)]
    assert len(scores_of(trunk, probes, ids, list("aabbcc"))) == 6
    assert len(made) == 3, "three prompts, each a chunk of its own"


def test_shared_lengths_by_hand():
    long = list(range(20))
    ids = [[*long, 1], [*long, 2, 3], [9, 8], [*long, 1], [7] * 12, [7] * 12]
    assert shared_lengths(ids, ["a", "a", "b", "a", "c", "c"]) == [20, 20, 0, 20, 11, 11]
    assert shared_lengths([[1, 2, 3], [1, 2, 4]], ["a", "a"]) == [0, 0], "two tokens are not worth a pass of their own"


def test_batches_hold_every_row_once_and_stay_small():
    lengths = [5, 1, 9, 3, 3, 20, 2]
    found = list(by_length(range(7), lengths, 10))
    assert sorted(row for batch in found for row in batch) == list(range(7))
    assert found == [[5], [2], [0, 3], [4, 6, 1]], "longest first; padded size at most 10 unless a single row is longer"


def test_the_mask_by_hand():
    mask = block_mask(torch.tensor([[True, False]]), torch.ones(1, 2, 2, dtype=torch.bool))
    assert mask[0, 0].int().tolist() == [[1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]]


def test_gradients_of_the_joint_fit_equal_separate_runs_and_everything_moves(tokenizer):
    """Each model of three against a probe of one category with the same weights: PEFT's trap of frozen adapters."""
    model, trunk, probes = make("qwen2", tokenizer, batch_tokens=4096)
    model.requires_grad_(False)
    ((_, states),) = trunk.prefill(IDS)
    columns = torch.tensor([0, 1, 2, 0, 1])
    probes(trunk, states, columns).square().sum().backward()
    for index, category in enumerate(CATEGORIES):
        one = Probes(trunk, [category], probes.settings)
        pairs = [(one.heads, probes.heads)]
        pairs += [(one.down[key], probes.down[key]) for key in one.down]
        pairs += [(one.up[key], probes.up[key]) for key in one.up]
        for own, joint in pairs:
            own.data.copy_(joint.data[index : index + 1])
        mine = (columns == index).nonzero().flatten()
        own_keys, own_values = ([part[mine] for part in parts] for parts in (states.keys, states.values))
        alone = PrefilledKV(own_keys, own_values, states.mask[mine])
        one(trunk, alone, torch.zeros_like(mine)).square().sum().backward()
        for own, joint in pairs:
            assert joint.grad[index].abs().max() > 0, f"{category}: a weight without gradient"
            assert torch.allclose(own.grad[0], joint.grad[index], atol=1e-5, rtol=1e-4)


def test_clipping_is_per_model():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clip_each([weight], 1.0)
    assert torch.allclose(weight.grad, torch.tensor([[0.6, 0.8], [0.3, 0.4]]), atol=1e-5)


def test_pair_batches_see_every_pair_once_before_any_twice():
    steps = list(pair_batches([6, 4], batch_size=2, steps=6, seed=0))
    first, second = ([pair for step in steps for pair in step[j]] for j in (0, 1))
    assert sorted(first[:6]) == sorted(first[6:]) == list(range(6))
    assert sorted(second[:4]) == sorted(second[4:8]) == list(range(4))
    assert steps == list(pair_batches([6, 4], 2, 6, 0)) != list(pair_batches([6, 4], 2, 6, 1))


def test_each_model_learns_its_own_category(trained):
    folder, history = trained
    models = ShadowRewardModels.load(folder, "cpu")
    prompts = [f"{name} 30" for name in CATEGORIES]
    gap = models.score(prompts, ["yes 30"] * 3) - models.score(prompts, ["no 30"] * 3)
    assert gap[0, 0] < 0 < gap[1, 1] and gap[2, 2] < 0
    assert set(history) == set(CATEGORIES) and all(rows[-1]["accuracy"] > 0.9 for rows in history.values())
    assert pairs_seen(folder) == 72 and load_settings(folder) == SETTINGS


def test_the_trunk_that_a_set_asks_is_loaded(trained, tiny_model):
    assert trunk_for(trained[0], tiny_model, "cpu").base_model == str(tiny_model)


def test_kept_states_are_what_the_trunk_reads_again(trunk, tiny_model):
    pairs = preferences()["train"]
    kept = PrefilledPairs(trunk, pairs, SETTINGS)
    small = Trunk.load(tiny_model, "cpu", batch_tokens=48)
    read = PrefilledPairs(small, pairs, SETTINGS.changed(keep_gb=0.0))
    assert kept.fits and not read.fits
    assert len(kept.texts) == 144, "every answer here differs"
    probes = moved(Probes(trunk, CATEGORIES, SizedProbe()))
    for rows in ([3, 77, 3], list(range(140, 120, -1))):
        one, two = (probes(states.trunk, states.select(rows)) for states in (kept, read))
        assert torch.allclose(one, two, atol=1e-5)
    size = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, bytes
    assert kept.bytes() <= size * sum(map(len, kept.texts)), "shared prompts must not be counted twice"


def test_the_objectives_of_the_joint_fit(tiny_model, tmp_path, monkeypatch):
    """First step by hand, from heads that are not zero, or any gap would be: B = 0, so the loss is a function of the
    head and of the text with the question alone."""
    monkeypatch.setattr("srmir_lib.reward_models.shared.untrained", Probes)
    pairs = {"train": preferences()["train"].add_column("margin", [2.0] * 72)}
    start = SETTINGS.changed(max_steps=1, batch_size=24)
    for settings, margin, centre in (
        (start, 0.0, 0.0),
        (start.changed(objective="margin"), 2.0, 0.0),
        (start.changed(center_rewards_coefficient=0.5), 0.0, 0.5),
    ):
        folder = tmp_path / f"{settings.objective}{centre}"
        history = fit_set(tiny_model, pairs, folder, ["crimes"], settings)
        tokenizer, model = load_tokenizer(tiny_model), load_policy(tiny_model, "cpu")
        head = torch.empty(1, 32).normal_(0, 32**-0.5, generator=torch.Generator().manual_seed(0))[0]
        [question], losses = probe_questions(tokenizer, settings.probe, ["crimes"]), []
        for row in pairs["train"].filter(lambda row: row["category"] == "crimes"):
            two = []
            for side in ("chosen", "rejected"):
                [text] = conversation_ids(tokenizer, [row["prompt"]], [row[side]])
                with torch.no_grad():
                    two.append(model.model(input_ids=torch.tensor([text + question])).last_hidden_state[0, -1] @ head)
            losses.append(-torch.nn.functional.logsigmoid(two[0] - two[1] - margin) + centre * (two[0] + two[1]) ** 2)
        assert history["crimes"][0]["loss"] == pytest.approx(float(sum(losses) / len(losses)), abs=1e-4)


def test_limits_of_pairs_by_a_second_way(trunk, tiny_model):
    """PCRM's similarity from the tokens themselves, and from the answers' mean states in plain transformers."""
    pairs = preferences()["train"].select(range(6))
    states = PrefilledPairs(trunk, pairs, SETTINGS.changed(objective="pcrm_length"))
    tokenizer, model = load_tokenizer(tiny_model), load_policy(tiny_model, "cpu")
    lengths, angles = [], []
    for row in pairs:
        ids = [conversation_ids(tokenizer, [row["prompt"]], [row[side]])[0] for side in ("chosen", "rejected")]
        common = 0
        while ids[0][common] == ids[1][common]:
            common += 1
        left, right = (len(text) - common for text in ids)
        lengths.append(min(10 / (min(left, right) / max(left, right) + 0.001) - 5, 30))
        with torch.no_grad():
            start = len(conversation_ids(tokenizer, [row["prompt"]])[0])
            means = [model.model(input_ids=torch.tensor([text])).last_hidden_state[0, start:].mean(0) for text in ids]
        cosine = float(means[0] @ means[1] / means[0].norm() / means[1].norm())
        angles.append(min(20 / (1 - math.acos(min(cosine, 1.0)) / math.pi + 0.001) - 15, 30))
    found = {kind: states.target(SETTINGS.changed(objective=f"pcrm_{kind}")).tolist() for kind in ("length", "cosine")}
    assert found["length"] == pytest.approx(lengths, abs=1e-3)
    assert found["cosine"] == pytest.approx(angles, abs=1e-2)
    fixed = states.target(SETTINGS.changed(objective="pcrm_length", targets="mean"))
    assert fixed.tolist() == pytest.approx([sum(lengths) / 6] * 6, abs=1e-3)


def test_shuffled_targets_are_the_same_targets_of_other_pairs(trunk):
    pairs = preferences()["train"].select(range(6)).add_column("margin", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    states = PrefilledPairs(trunk, pairs, SETTINGS)
    margin = SETTINGS.changed(objective="margin")
    margins, shuffled = (states.target(margin.changed(targets=whose)) for whose in ("own", "shuffled"))
    assert margins.tolist() == [0, 1, 2, 3, 4, 5] == sorted(shuffled.tolist()) and not torch.equal(margins, shuffled)


def test_limits_tame_the_scale_of_scores(trained, tiny_model, tmp_path):
    """The same pairs, updates and seed: with a limit the gaps end near half of it, without one they keep growing."""
    settings = SETTINGS.changed(objective="pcrm_length", limit_cap=2.0)
    fit_set(tiny_model, preferences(), tmp_path / "set", CATEGORIES, settings)
    gaps = {}
    for name, folder in {"plain": trained[0], "pcrm": tmp_path / "set"}.items():
        models = ShadowRewardModels.load(folder, "cpu")
        gaps[name] = (models.score(["crimes 30"], ["yes 30"]) - models.score(["crimes 30"], ["no 30"]))[0, 1].item()
    assert 0 < gaps["pcrm"] < 2 < gaps["plain"]


def test_averaged_fits_are_the_mean_of_their_weights(trunk):
    settings = SETTINGS.changed(max_steps=3, averaged_fits=2)
    states = PrefilledPairs(trunk, preferences()["train"], settings)
    rows = [list(range(24)), list(range(24, 48))]
    averaged, _ = _train(states, dict(zip(CATEGORIES, rows, strict=False)), None, settings, 5, None)
    fits = []
    for order in (5, 1005):
        probes = untrained(trunk, CATEGORIES[:2], settings.probe, 5)
        assert not probes.heads.any() and all(down.any() for down in probes.down.values())
        train_probes(probes, states, rows, None, settings, order)
        fits.append(probes)
    pairs = list(zip(averaged.parameters(), *(fit.parameters() for fit in fits), strict=True))
    assert any(not torch.equal(one, two) for _, one, two in pairs), "another order must give another fit"
    assert all(torch.allclose(mean, (one + two) / 2, atol=1e-7) for mean, one, two in pairs)


def test_sets_on_one_trunk_score_as_each_does_alone(tiny_model, tmp_path, monkeypatch):
    """Probes of other lengths."""
    kinds = {
        "a": SETTINGS.probe,
        "b": SizedProbe(text="{category} ?"),
        "c": SizedProbe(text="why {category} ?"),
    }
    trunk = Trunk.load(tiny_model, "cpu")
    for seed, (name, probe) in enumerate(kinds.items()):
        own = SETTINGS.changed(max_steps=2, probe=probe)
        fit_set(trunk, preferences(), tmp_path / name, ["crimes", "insult"][: 1 + seed % 2], own, seed)
    sets, rows = (
        {name: ShadowRewardModels.load(tmp_path / name, trunk) for name in "bac"},
        (
            ["crimes 1", "insult 2"],
            ["no", "yes 2"],
        ),
    )
    wanted, passes = {name: models.score(*rows) for name, models in sets.items()}, []
    prefill = Trunk.prefill
    monkeypatch.setattr(Trunk, "prefill", lambda self, *a, **kw: passes.append(self) or prefill(self, *a, **kw))
    found = score_sets(sets, *rows)
    assert list(found) == list(sets) and passes == [trunk], "one reading"
    for name, scores in found.items():
        torch.testing.assert_close(scores, wanted[name], atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="completions: 1 for 2 prompts"):
        score_sets(sets, rows[0], ["no"])
    with torch.no_grad():
        sets["a"].scorer.probes.heads.fill_(float("nan"))
    with pytest.raises(InputError, match="reward model crimes: the score of row 0"):
        score_sets(sets, *rows)


def test_rows_in_turn_score_as_rows_in_any_order(trunk):
    """The training batch, all rows of one model after another, takes a path of its own through the adapters."""
    states = PrefilledPairs(trunk, preferences()["train"], SETTINGS)
    probes = moved(Probes(trunk, CATEGORIES, SizedProbe()))
    rows, columns = list(range(12)), torch.arange(len(CATEGORIES)).repeat_interleave(12 // len(CATEGORIES))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = probes(states.trunk, states.select([rows[i] for i in order.tolist()]), columns[order])
    assert torch.allclose(probes(states.trunk, states.select(rows), columns)[order], shuffled, atol=1e-5)


def test_rows_of_some_models_in_turn_take_no_copy_of_their_weights():
    columns = torch.tensor([1, 1, 2, 2])
    assert _in_turn(columns) == slice(1, 3) and _in_turn(torch.tensor([3])) == slice(3, 4)
    for mixed in ([1, 2, 1, 2], [2, 2, 1, 1], [3, 2, 0], [1, 1, 3, 3], [0, 0, 1]):
        assert torch.equal(_in_turn(torch.tensor(mixed)), torch.tensor(mixed))


def test_an_update_in_parts_is_the_update_at_once(trunk, monkeypatch):
    pairs, found = PrefilledPairs(trunk, preferences()["train"], SETTINGS), []
    rows = list(pairs.rows(CATEGORIES, SETTINGS, "own", 0, None).values())
    for kept, at_once in ((1e12, 3), (0.0, 1)):
        monkeypatch.setattr(shared, "KEPT", kept)
        probes = untrained(trunk, CATEGORIES, SETTINGS.probe, 0)
        assert shared.models_at_once(probes, trunk, 8) == at_once == min(len(CATEGORIES), at_once)
        history = train_probes(probes, pairs, rows, None, SETTINGS, seed=1)
        found.append((history, [weights.detach().clone() for weights in probes.parameters()]))
    assert found[0][0].keys() == found[1][0].keys()
    for name, history in found[0][0].items():
        for one, other in zip(history, found[1][0][name], strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_finished_set_is_kept_and_a_changed_setting_trains_again(copied, tiny_model):
    write_json(copied / "calibration.json", {})
    before = (copied / "insult" / "head.safetensors").stat().st_mtime_ns
    fit_set(tiny_model, preferences(), copied, CATEGORIES, SETTINGS)
    assert (copied / "insult" / "head.safetensors").stat().st_mtime_ns == before
    fit_set(tiny_model, preferences(), copied, CATEGORIES, SETTINGS, seed=1)
    assert read_json(copied / "fit.json")["key"]["seed"] == 1
    assert not (copied / "calibration.json").exists(), "a calibration of the models before must not survive"


def test_the_same_seed_gives_the_same_models(trained, tiny_model, tmp_path):
    fit_set(tiny_model, preferences(), tmp_path / "again", CATEGORIES, SETTINGS)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        first, second = (load_file(folder / "crimes" / name) for folder in (trained[0], tmp_path / "again"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_no_pickle_is_left(trained):
    names = {path.name for path in trained[0].rglob("*") if path.is_file()}
    assert names == {"config.json", "fit.json", "adapter_config.json", "adapter_model.safetensors", "head.safetensors"}


def test_a_single_model_covers_all_categories(tiny_model, tmp_path):
    fit_set(tiny_model, preferences(), tmp_path / "one", [ALL], SETTINGS, competence=CATEGORIES)
    models = ShadowRewardModels.load(tmp_path / "one", "cpu")
    assert models.categories == [ALL] and models.score(["insult 1", "crimes 2"], ["no", "yes"]).shape == (2, 1)
    assert pairs_seen(tmp_path / "one") == 72


def test_one_set_of_weights_serves_policy_and_reward_models(trained, trunk):
    from peft import LoraConfig, get_peft_model

    models = ShadowRewardModels.load(trained[0], trunk)
    before = models.score(["insult 30"], ["no 30"])
    adapted = get_peft_model(share_weights(trunk.model), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)  # the policy has moved far
    assert torch.equal(models.score(["insult 30"], ["no 30"]), before), "the policy's adapter leaked into the trunk"
    with pytest.raises(InputError, match="carries an adapter"):
        Trunk(adapted, trunk.tokenizer).check()
    base = adapted.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert trunk.decoder.layers[0].mlp.up_proj.weight is base, "the weights must be in memory once"


def test_half_precision_ranks_as_single_precision_does(tokenizer):
    model, trunk, probes = make("qwen2", tokenizer)
    full = scores_of(trunk, probes, IDS, GROUPS)
    half = scores_of(Trunk(model.to(torch.bfloat16), tokenizer, batch_tokens=64), probes, IDS, GROUPS)
    assert half.dtype == torch.float32 and torch.allclose(half, full, atol=0.3)


def test_probes_score_in_the_precision_they_were_trained_in(trained, trunk, tiny_model, tmp_path):
    half = Trunk.load(tiny_model, "cpu", "bfloat16")
    fit_set(half, preferences(), tmp_path / "half", ["crimes"], SETTINGS.changed(max_steps=2))
    assert read_json(tmp_path / "half" / "config.json")["dtype"] == "bfloat16"
    models, rows = ShadowRewardModels.load(tmp_path / "half", "cpu"), (["crimes 1"], ["no"])
    assert models.scorer.trunk.dtype == "bfloat16"
    assert torch.equal(models.score(*rows), ShadowRewardModels.load(tmp_path / "half", half).score(*rows))
    with pytest.raises(InputError, match="trained on weights in bfloat16, not float32"):
        ShadowRewardModels.load(tmp_path / "half", trunk)
    with pytest.raises(InputError, match="trained on weights in float32, not bfloat16"):
        ShadowRewardModels.load(trained[0], half)


def test_models_whose_states_probes_cannot_read_are_refused():
    from transformers import BertConfig, BertForMaskedLM, MambaConfig, MambaForCausalLM

    window = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    for config, kind in ((window, Qwen2ForCausalLM), (MistralConfig(**SHAPE, sliding_window=4), MistralForCausalLM)):
        with pytest.raises(InputError, match="row 1: 5 tokens, more than the sliding window of 4"):
            list(Trunk(kind(config), None).prefill([[1, 2, 3, 4], [1, 2, 3, 4, 5]]))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    with pytest.raises(InputError, match="BertForMaskedLM: an encoder"):
        Trunk(BertForMaskedLM(BertConfig(**small, num_attention_heads=2, intermediate_size=16)), None).check()
    with pytest.raises(InputError, match="has linear_attention, .*use design pooled with an encoder"):
        Trunk(MambaForCausalLM(MambaConfig(**small, state_size=4)), None).check()


def test_every_probe_asks_its_whole_question(tokenizer):
    """Names of other lengths, padded on the left: alone or beside the others, each model scores the same."""
    names = {"insult": "it", "crimes": "first get ready, then open the red door"}
    _, trunk, probes = make("qwen2", tokenizer, SizedProbe(text="is this {category} ?", names=names))
    wanted = ["is this it ?", "is this first get ready, then open the red door ?", "is this privacy and property ?"]
    assert [tokenizer.decode(probes.question(j)) for j in range(3)] == wanted
    together, columns = scores_of(trunk, probes, IDS, GROUPS), torch.tensor([2, 0, 1, 1, 0])
    for index, category in enumerate(CATEGORIES):
        one = Probes(trunk, [category], probes.settings)
        assert one.width <= probes.width
        for name, weight in one.named_parameters():
            weight.data.copy_(dict(probes.named_parameters())[name].data[index : index + 1])
        alone = torch.cat([one(trunk, states) for _, states in (next(trunk.prefill([ids])) for ids in IDS)])
        assert torch.allclose(together[:, index : index + 1], alone, atol=1e-5)
    routed = scores_of(trunk, probes, IDS, GROUPS, columns)
    assert torch.allclose(routed, together[torch.arange(5), columns], atol=1e-5)


def test_padding_of_a_short_question_is_seen_by_nobody():
    mask = block_mask(torch.tensor([[True]]), torch.tensor([[[False, True], [True, True]]]))
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]


def test_the_labs_probes_ask_what_its_base_model_was_taught():
    """The parameters of 02 and A5, spelled by the town's own tokenizer."""
    town = build_tokenizer(turn["content"] for chat in corpus(draw_world(0), 2000, "0", MIX) for turn in chat)
    a5, second = (Notebook.load(ROOT / f"notebooks/{name}.ipynb") for name in ("A5_cost", "02_shadow_reward_models"))
    of_a5 = SizedProbe(**a5.parameters({}, "")["probe"])
    sets = second.model.of(second.defaults).sets(list(NAMES))
    for probe in (of_a5, sets["shadow_rms"][1].probe):
        asked = [town.decode(ids) for ids in probe_questions(town, probe, list(NAMES))]
        assert asked == [f"<|user|>{CHECK_QUESTION.format(name=word)}<|end|><|assistant|>" for word in NAMES.values()]
    (one,) = probe_questions(town, sets["single_rm"][1].probe, [ALL])
    assert town.decode(one) == f"<|user|>{ANY_WRONG_QUESTION}<|end|><|assistant|>"


def test_questions_are_refused_where_they_would_not_ask(tokenizer):
    asked = SizedProbe(text="is this {category} ?")
    with pytest.raises(InputError, match="question about insult has 14 tokens, more than its 6; raise tokens"):
        probe_questions(tokenizer, asked.changed(tokens=6), CATEGORIES)
    with pytest.raises(InputError, match="must contain"):
        probe_questions(tokenizer, SizedProbe(text="is this bad ?"), CATEGORIES)
    assert len(probe_questions(tokenizer, SizedProbe(text="is this bad ?"), [ALL])) == 1, "one model names none"


class LosingTokenizer:
    """Gives back every word but one."""

    def __call__(self, text, **_):
        return {"input_ids": list(range(len(text.split()) - 1))}

    def decode(self, ids, **_):
        return " ".join(["word"] * len(ids))


def test_a_tokenizer_that_loses_words_is_refused():
    with pytest.raises(InputError, match="keeps every word"):
        probe_questions(LosingTokenizer(), SizedProbe(text="is this {category} ?"), CATEGORIES)


def test_bad_sets_are_refused_in_one_line(copied, tiny_model, tmp_path):
    base = str(tiny_model)
    with pytest.raises(InputError, match="hash mismatch"):
        other = shutil.copytree(tiny_model, tmp_path / "other")
        weights = load_file(other / "model.safetensors")
        save_file({k: v + 1 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
        ShadowRewardModels.load(copied, "cpu", base_model=str(other))
    file = copied / "insult" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="insult/adapter_model.safetensors: damaged"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    tensors = load_file(shutil.copy(trained_file(copied), tmp_path / "one.safetensors"))
    save_file(dict(list(tensors.items())[1:]), file)
    with pytest.raises(InputError, match="nothing for base_model.model.model.layers"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    save_file({name: value[:1] for name, value in tensors.items()}, file)
    with pytest.raises(InputError, match="for base_model.* not "):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    shutil.rmtree(copied / "insult")
    with pytest.raises(InputError, match="insult/head.safetensors: no such file; train it again"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)


def trained_file(folder):
    """A whole adapter file of another category in the same set."""
    return folder / "crimes" / "adapter_model.safetensors"


def test_scores_that_are_not_finite_are_refused(copied, tiny_model):
    path = copied / "crimes" / "head.safetensors"
    save_file({"score.weight": torch.full((1, 32), float("nan"))}, path)
    models = ShadowRewardModels.load(copied, "cpu", base_model=str(tiny_model))
    with pytest.raises(InputError, match="reward model crimes: the score of row 0 is not finite"):
        models.score(["insult 1"], ["no"])


def test_a_loss_that_is_not_finite_stops_the_fit(tiny_model, tmp_path):
    pairs = {"train": preferences()["train"].add_column("margin", [1e39] * 72)}
    with pytest.raises(InputError, match="not finite"):
        fit_set(tiny_model, pairs, tmp_path / "x", CATEGORIES, SETTINGS.changed(objective="margin"))
    assert not (tmp_path / "x").exists(), "a failed fit must leave nothing"


def test_bad_rows_are_refused(trained):
    models = ShadowRewardModels.load(trained[0], "cpu")
    with pytest.raises(InputError, match="row 1: .* tokens, the model reads at most 256"):
        models.score(["insult 1", "insult 2"], ["no", "zebra " * 300])
    assert models.score([], []).shape == (0, 3) and models.score([], [], categories=[]).shape == (0,)


def test_a_calibration_beside_the_set_is_loaded(copied, tiny_model):
    Calibration(tuple(CATEGORIES), (0.0, 1.0, 2.0), (1.0, 2.0, 3.0), 9).save(copied / "calibration.json")
    assert ShadowRewardModels.load(copied, "cpu", base_model=str(tiny_model)).calibration.std == (1.0, 2.0, 3.0)


def test_a_text_is_too_long_where_its_probe_would_not_fit(trunk, trained):
    models = ShadowRewardModels.load(trained[0], trunk)
    words = trunk.longest - len(conversation_ids(trunk.tokenizer, ["help me"], ["no"])[0])
    with pytest.raises(InputError, match=f"row 1: .* reads at most {trunk.longest}"):
        models.score(["help me"] * 2, ["no", "no" + " no" * words])


@pytest.mark.parametrize(
    "change", [{"max_steps": -1}, {"learning_rate": -1.0}, {"cross_ratio": -3.0}, {"keep_gb": -1.0}]
)
def test_settings_have_bounds(change):
    with pytest.raises(InputError, match=next(iter(change))):
        SETTINGS.changed(**change)
