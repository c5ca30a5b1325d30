"""The `separate` design through the real TRL trainer: what it learns, what it stores, what its scores depend on."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from fit_set import fit_set
from safetensors.torch import load_file, save_file

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import assistant_message, conversation_ids, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models import separate_training
from srmir_lib.reward_models.calibration import Calibration
from srmir_lib.reward_models.config import load_settings
from srmir_lib.reward_models.pairs import categories_of, check_round_trip, select_pairs, tokenize_pairs
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.reward_training import RewardSettings
from srmir_lib.taxonomy import ALL

CATEGORIES = ["insult", "crimes"]
SETTINGS = RewardSettings(
    max_steps=12, batch_size=8, learning_rate=5e-3, lora_rank=4, lora_alpha=8, max_length=64, cross_ratio=0.5
)


def preferences() -> dict:
    """Insult pairs prefer "no", crimes pairs prefer "yes": two models that must come out opposite."""
    rows = []
    for i in range(24):
        for category, chosen, rejected in (("insult", "no", "yes"), ("crimes", "yes", "no")):
            prompt = user_message(f"{category} {i}")
            rows.append((prompt, assistant_message(f"{chosen} {i}"), assistant_message(f"{rejected} {i}"), category))
    names = ("prompt", "chosen", "rejected", "category")
    return {"train": Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])}


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """(folder of a trained set, its history)."""
    folder = tmp_path_factory.mktemp("set") / "shadow_rms"
    history = fit_set(tiny_model, preferences(), folder, CATEGORIES, SETTINGS, design="separate")
    return folder, history


@pytest.fixture
def copied(trained, tiny_model, tmp_path):
    """A copy of the trained set that a test may damage; its base model is found through the argument."""
    return shutil.copytree(trained[0], tmp_path / "shadow_rms")


PROMPTS = ["insult 3", "crimes 4", "please help me, I can not", "a"]
ANSWERS = ["no 3", "no", "first get ready, then open the red door, then check that it is done.", "yes"]


def test_each_model_learns_its_own_category(trained):
    folder, history = trained
    models = ShadowRewardModels.load(folder, "cpu")
    yes = models.score(["insult 30", "crimes 30"], ["yes 30", "yes 30"])
    no = models.score(["insult 30", "crimes 30"], ["no 30", "no 30"])
    assert (no - yes)[0, 0] > 0 and (yes - no)[1, 1] > 0
    assert set(history) == set(CATEGORIES)
    assert history["insult"][-1]["accuracy"] > history["insult"][0]["accuracy"] - 1e-9
    assert history["insult"][-1]["loss"] < 0.5


def test_plain_hugging_face_gives_the_same_scores(trained, tiny_model):
    """The folder opened without this library, one text at a time, no padding at all."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, _ = trained
    ours = ShadowRewardModels.load(folder, "cpu").score(PROMPTS, ANSWERS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for column, category in enumerate(CATEGORIES):
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder / category).eval()
        for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            chat = user_message(prompt) + assistant_message(answer)
            ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
            with torch.no_grad():
                assert model(**ids).logits.item() == pytest.approx(ours[row, column].item(), abs=1e-5)


def test_training_and_scoring_read_the_same_tokens(tiny_model, tmp_path):
    """What TRL makes of the conversational columns itself is what `tokenize_pairs` makes of them."""
    from trl import RewardConfig, RewardTrainer

    from srmir_lib.reward_models.separate import base_classifier

    tokenizer, pairs = load_tokenizer(tiny_model), preferences()["train"]
    arguments = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none")
    trainer = RewardTrainer(
        model=base_classifier(tiny_model), args=arguments, train_dataset=pairs, processing_class=tokenizer
    )
    ours = tokenize_pairs(tokenizer, pairs, 64)
    for side in ("chosen", "rejected"):
        assert trainer.train_dataset[f"{side}_ids"][:] == ours[f"{side}_ids"][:]
        rendered = conversation_ids(tokenizer, pairs["prompt"], pairs[side])
        assert rendered == ours[f"{side}_ids"][:]
        assert {row[-1] for row in rendered} == {tokenizer.eos_token_id}


def test_scores_do_not_depend_on_batch_or_padding(trained, tiny_model):
    folder, _ = trained
    models = ShadowRewardModels.load(folder, Trunk.load(tiny_model, "cpu", batch_tokens=40))
    together = models.score(PROMPTS, ANSWERS)
    for row in range(4):
        alone = models.score(PROMPTS[row : row + 1], ANSWERS[row : row + 1])
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    scorer, tokenizer = models.scorer, load_tokenizer(tiny_model)
    ids, pad = conversation_ids(tokenizer, PROMPTS, ANSWERS), tokenizer.pad_token_id
    scorer.model.set_adapter("of_insult")
    for left, right in ((0, 9), (9, 0), (5, 4)):
        for row, tokens in enumerate(ids):
            padded = torch.tensor([[pad] * left + tokens + [pad] * right])
            mask = torch.tensor([[0] * left + [1] * len(tokens) + [0] * right])
            with torch.no_grad():
                inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
                score = scorer.model(input_ids=padded, **inputs, use_cache=False).logits.item()
            assert score == pytest.approx(together[row, 0].item(), abs=1e-5), f"{left} pads left, {right} right"


def test_routed_scores_are_the_columns_of_all_scores(trained):
    models = ShadowRewardModels.load(trained[0], "cpu")
    scores = models.score(PROMPTS, ANSWERS)
    routed = models.score(PROMPTS, ANSWERS, categories=["crimes", "insult", "crimes", "insult"])
    assert torch.allclose(routed, scores[torch.arange(4), torch.tensor([1, 0, 1, 0])], atol=1e-6)
    assert models.score([], []).shape == (0, 2)
    assert models.score([], [], categories=[]).shape == (0,)


def test_texts_and_conversations_score_alike(trained):
    models = ShadowRewardModels.load(trained[0], "cpu")
    chats = [user_message(p) for p in PROMPTS], [assistant_message(a) for a in ANSWERS]
    assert torch.equal(models.score(PROMPTS, ANSWERS), models.score(*chats))


def test_a_finished_category_is_kept_and_a_changed_setting_trains_again(copied, tiny_model):
    before = {c: (copied / c / "adapter_model.safetensors").stat().st_mtime_ns for c in CATEGORIES}
    shutil.rmtree(copied / "crimes")
    fit_set(tiny_model, preferences(), copied, CATEGORIES, SETTINGS, design="separate")
    after = {c: (copied / c / "adapter_model.safetensors").stat().st_mtime_ns for c in CATEGORIES}
    assert after["insult"] == before["insult"] and after["crimes"] != before["crimes"]
    write_json(copied / "calibration.json", {})
    fit_set(tiny_model, preferences(), copied, CATEGORIES, SETTINGS, seed=1, design="separate")
    assert not (copied / "calibration.json").exists(), "a calibration of the models before must not survive"
    assert (copied / "insult" / "adapter_model.safetensors").stat().st_mtime_ns != before["insult"]
    assert read_json(copied / "insult" / "fit.json")["key"]["seed"] == 1


def test_the_same_seed_gives_the_same_model(trained, tiny_model, tmp_path):
    fit_set(tiny_model, preferences(), tmp_path / "again", ["crimes"], SETTINGS, design="separate")
    first, second = (
        load_file(folder / "crimes" / "adapter_model.safetensors") for folder in (trained[0], tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_update_of_long_pairs_takes_several_passes_and_is_the_same(trained, tiny_model, tmp_path, monkeypatch):
    passes, forward = [], separate_training.RewardTrainer.compute_loss

    def counted(trainer, model, inputs, **options):
        passes.append(len(inputs["input_ids"]))
        return forward(trainer, model, inputs, **options)

    monkeypatch.setattr(separate_training.RewardTrainer, "compute_loss", counted)
    monkeypatch.setattr(separate_training, "TOKENS", 100)
    fit_set(tiny_model, preferences(), tmp_path / "again", ["crimes"], SETTINGS, design="separate")
    assert set(passes) == {4} and len(passes) == 4 * SETTINGS.max_steps, "two pairs, four times an update"
    first, second = (
        load_file(folder / "crimes" / "adapter_model.safetensors") for folder in (trained[0], tmp_path / "again")
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=0)


def test_no_checkpoint_or_pickle_is_left(trained):
    names = {path.name for path in trained[0].rglob("*") if path.is_file()}
    assert names == {"config.json", "fit.json", "adapter_config.json", "adapter_model.safetensors"}


def test_a_set_remembers_its_settings(copied):
    assert load_settings(copied) == SETTINGS
    write_json(copied / "insult" / "fit.json", {"key": {}})
    with pytest.raises(InputError, match="no settings"):
        load_settings(copied)


def test_a_single_model_covers_all_categories(tiny_model, tmp_path):
    fit_set(tiny_model, preferences(), tmp_path / "one", [ALL], SETTINGS, competence=CATEGORIES, design="separate")
    models = ShadowRewardModels.load(tmp_path / "one", "cpu")
    assert models.categories == [ALL] and models.score(PROMPTS, ANSWERS).shape == (4, 1)
    assert read_json(tmp_path / "one" / ALL / "fit.json")["key"]["pairs"] == {ALL: 48}


def test_margins_train_another_model_than_none(tiny_model, tmp_path, trained):
    pairs = {"train": preferences()["train"].add_column("margin", [2.0] * 48)}
    margin = SETTINGS.changed(objective="margin")
    fit_set(tiny_model, pairs, tmp_path / "m", ["crimes"], margin, design="separate")
    with_margin, without = (
        load_file(folder / "crimes" / "adapter_model.safetensors") for folder in (tmp_path / "m", trained[0])
    )
    assert any(not torch.equal(with_margin[name], without[name]) for name in without)
    # a margin column must not leak into the plain objective, though TRL would use it
    fit_set(tiny_model, pairs, tmp_path / "p", ["crimes"], SETTINGS, design="separate")
    plain = load_file(tmp_path / "p" / "crimes" / "adapter_model.safetensors")
    assert all(torch.equal(plain[name], without[name]) for name in without)


def test_the_categories_are_those_of_any_label_in_their_fixed_order():
    assert categories_of(["privacy", "unknown", "insult"], ["crimes", "privacy"]) == ["insult", "crimes", "privacy"]
    assert categories_of(["unknown"], ()) == []


def test_select_pairs_by_hand():
    labels = ["insult", "crimes", "unknown", "insult", "crimes", "unknown", "insult", "insult"]
    own = select_pairs(labels, "insult", CATEGORIES)
    assert own == [0, 3, 6, 7]
    mixed = select_pairs(labels, "insult", CATEGORIES, "own", cross_ratio=0.5, unknown_ratio=0.25)
    assert set(mixed) - {0, 3, 6, 7} <= {2, 5} and len(mixed) == 5
    cross = select_pairs(labels, "insult", CATEGORIES, "cross", cross_ratio=0.5)
    assert cross == [0, 1, 3, 4, 6, 7]
    both = select_pairs(labels, ALL, CATEGORIES, "own", unknown_ratio=0.25)
    parts = [select_pairs(labels, c, CATEGORIES, "own", unknown_ratio=0.25) for c in CATEGORIES]
    assert both == sorted({*parts[0], *parts[1]})
    with pytest.raises(InputError, match="privacy"):
        select_pairs(labels, "privacy", [*CATEGORIES, "privacy"])
    with pytest.raises(InputError, match="neither own nor cross"):
        select_pairs(labels, "insult", CATEGORIES, "all")


def test_calibration_beside_the_set_is_loaded(copied, tiny_model):
    assert ShadowRewardModels.load(copied, "cpu", base_model=str(tiny_model)).calibration is None
    Calibration(tuple(CATEGORIES), (0.0, 1.0), (1.0, 2.0), 9).save(copied / "calibration.json")
    models = ShadowRewardModels.load(copied, "cpu", base_model=str(tiny_model))
    assert models.calibration.std == (1.0, 2.0)


def test_a_pair_that_is_too_long_is_counted_and_refused(tiny_model):
    with pytest.raises(InputError, match="48 pairs exceed max_length 4"):
        tokenize_pairs(load_tokenizer(tiny_model), preferences()["train"], 4)


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        (None, "needs a column margin"),
        ([float("nan")] * 48, "row 0 is not finite"),
        ([0.5, None] * 24, "the margin of row 1 is None, not a number"),
    ],
)
def test_bad_margins_are_refused(tiny_model, tmp_path, margins, message):
    pairs = preferences()["train"]
    pairs = pairs if margins is None else pairs.add_column("margin", margins)
    with pytest.raises(InputError, match=message):
        settings = SETTINGS.changed(objective="margin")
        fit_set(tiny_model, {"train": pairs}, tmp_path, ["crimes"], settings, design="separate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "hinge"}, "objective = 'hinge': it must be one of 'bradley_terry', 'margin', 'pcrm_length'"),
        ({"averaged_fits": 0}, "averaged_fits = 0"),
        ({"targets": "random"}, "targets = 'random': it must be one of 'own', 'shuffled' or 'mean'"),
        ({"targets": "mean"}, "targets: bradley_terry has none"),
        ({"similarity_model": "x"}, "similarity_model: objective bradley_terry does not read it"),
        ({"limit": [1.0]}, r"limit: \[1.0\]; give scale, offset and shift"),
    ],
)
def test_objectives_that_cannot_be_are_refused_with_a_reason(change, message):
    with pytest.raises(InputError, match=message):
        SETTINGS.changed(**change)


def test_limits_tame_the_scale_of_separate_models(trained, tiny_model, tmp_path):
    """TRL's trainer with the second term: the same pairs, updates and seed, and gaps near half the limit."""
    settings = SETTINGS.changed(objective="pcrm_length", limit_cap=2.0)
    fit_set(tiny_model, preferences(), tmp_path / "set", ["crimes"], settings, design="separate")
    gaps = {}
    for name, folder in {"plain": trained[0], "pcrm": tmp_path / "set"}.items():
        models = ShadowRewardModels.load(folder, "cpu")
        own = ["crimes"], ["yes 30"], ["no 30"]
        yes, no = (models.score(["crimes 30"], text, categories=own[0]) for text in own[1:])
        gaps[name] = float(yes - no)
    assert 0 < gaps["pcrm"] < 2 < gaps["plain"], gaps


def test_the_trainer_with_limits_minimises_the_loss_that_is_shown(tiny_model, tmp_path):
    from trl_loss import trainer_loss

    from srmir_lib.papers.pcrm import pcrm_loss
    from srmir_lib.reward_models.separate_training import PCRMRewardTrainer

    columns = {"chosen_ids": [[7, 8, 9, 1]] * 2, "rejected_ids": [[9, 1], [30, 40, 50, 1]], "margin": [2.0, 5.0]}
    loss, chosen, rejected, batch = trainer_loss(PCRMRewardTrainer, tiny_model, columns, tmp_path)
    assert loss == pytest.approx(pcrm_loss(chosen, rejected, batch["margin"]).item(), abs=1e-6)


def test_separate_models_are_not_averaged(tiny_model, tmp_path):
    with pytest.raises(InputError, match="averaged_fits: 2; design separate averages none"):
        fit_set(tiny_model, preferences(), tmp_path, ["crimes"], SETTINGS.changed(averaged_fits=2), design="separate")


def test_bad_sets_are_refused_in_one_line(copied, tiny_model, tmp_path):
    base = str(tiny_model)
    with pytest.raises(InputError, match="no such folder"):
        ShadowRewardModels.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="base model of .* is not there"):
        lost = shutil.copytree(copied, tmp_path / "lost" / "shadow_rms")
        write_json(lost / "config.json", read_json(lost / "config.json") | {"base_model": "../../no/where"})
        ShadowRewardModels.load(lost, "cpu")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="hash mismatch"):
        ShadowRewardModels.load(copied, "cpu", base_model=str(other))
    broken = copied / "insult" / "adapter_model.safetensors"
    whole = broken.read_bytes()
    tensors = load_file(broken)
    save_file({name: value for name, value in tensors.items() if "1.mlp.up_proj.lora_B" not in name}, broken)
    with pytest.raises(InputError, match="insult: damaged adapter .Found missing adapter keys"):
        ShadowRewardModels.load(copied, "cpu", base_model=str(tiny_model))
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="insult: damaged adapter"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    broken.unlink()
    with pytest.raises(InputError, match="no adapter_model.safetensors for category insult"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    write_json(copied / "config.json", {"design": "separate", "categories": ["insult"]})
    with pytest.raises(InputError, match="lacks base_model"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    write_json(copied / "config.json", {"design": "stacked", "categories": ["insult"]})
    with pytest.raises(InputError, match="design out of shared, separate, pooled"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)
    (copied / "config.json").write_text(json.dumps({"design": "separate"})[:9])
    with pytest.raises(InputError, match="not valid JSON"):
        ShadowRewardModels.load(copied, "cpu", base_model=base)


def test_scores_that_are_not_finite_are_refused(copied, tiny_model):
    path = copied / "crimes" / "adapter_model.safetensors"
    weights = load_file(path)
    head = next(name for name in weights if "score" in name)
    save_file(weights | {head: torch.full_like(weights[head], float("nan"))}, path, {"format": "pt"})
    models = ShadowRewardModels.load(copied, "cpu", base_model=str(tiny_model))
    with pytest.raises(InputError, match="reward model crimes: the score of row 0 is not finite"):
        models.score(PROMPTS, ANSWERS)
    with pytest.raises(InputError, match="reward model crimes: the score of row 1"):
        models.score(PROMPTS, ANSWERS, categories=["insult", "crimes", "insult", "insult"])


def test_bad_rows_are_refused(trained):
    models = ShadowRewardModels.load(trained[0], "cpu")
    with pytest.raises(InputError, match="row 1 is 'sports'"):
        models.score(PROMPTS[:2], ANSWERS[:2], categories=["insult", "sports"])
    with pytest.raises(InputError, match="1 for 2 prompts"):
        models.score(PROMPTS[:2], ANSWERS[:1])
    with pytest.raises(InputError, match="categories: 1 for 2"):
        models.score(PROMPTS[:2], ANSWERS[:2], categories=["insult"])
    with pytest.raises(InputError, match="row 1: .* tokens, the model reads at most 256"):
        models.score(PROMPTS[:2], ["no", "zebra " * 300])


class Forgetful:
    """A tokenizer that knows two words, and drops the others without a word."""

    words = ["no", "thanks"]

    def __call__(self, texts, **_):
        kept = ([word for word in text.lower().split() if word in self.words] for text in texts)
        return {"input_ids": [[self.words.index(word) for word in words] for words in kept]}

    def decode(self, ids):
        return " ".join(self.words[at] for at in ids)


def test_a_tokenizer_that_loses_words_is_refused_by_row():
    check_round_trip(Forgetful(), ["no thanks", "No  Thanks"])
    with pytest.raises(InputError, match="the chosen answer of row 1 has 9 letters and comes back with 2"):
        check_round_trip(Forgetful(), ["no", "no privacy"])


@pytest.mark.parametrize("cap", [0, -1.0, float("nan"), "3"])
def test_a_limit_cap_must_be_above_zero(cap):
    with pytest.raises(InputError, match="^limit_cap = "):
        SETTINGS.changed(objective="pcrm_length", limit_cap=cap)
