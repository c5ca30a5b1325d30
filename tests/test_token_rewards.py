"""Token rewards: blind to padding and company, equal to PEFT's Activated LoRA, trained alike, saved whole, refusing."""

import math
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from srmir_lib.artifacts import read_json
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.errors import InputError
from srmir_lib.models.generation import generate
from srmir_lib.models.kv_cache import as_cache
from srmir_lib.models.loading import load_policy
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.ava import TokenBeliefs
from srmir_lib.settings.appendices import TokenSettings
from srmir_lib.studies.a1_token_rewards.model import (
    LOG_SD,
    TokenHeads,
    TokenRewardFunction,
    TokenRewardModel,
)
from srmir_lib.studies.a1_token_rewards.reader import Reader
from srmir_lib.studies.a1_token_rewards.training import (
    fit_side_by_side,
    fit_token_rewards,
    load_token_rewards,
    token_loss,
    train_token_rewards,
)

SETTINGS = TokenSettings(
    objective="ava_p",
    form="stable",
    readout="mean",
    alpha=1.0,
    beta=0.1,
    gamma=0.9,
    lam=0.01,
    attention="none",
    max_steps=25,
    batch_size=6,
    learning_rate=1e-2,
    lora_rank=4,
    lora_alpha=8,
)
PROMPTS = ["open the door", "help me", "open the red door then check that it is done", "help me"]
ANSWERS = ["no", "first get ready, then open it.", "yes", "I can not"]


def preferences(count: int = 24) -> Dataset:
    """Red doors must stay shut, others be opened: an answer alone never tells."""
    rows = []
    for i in range(count):
        red = i % 2 == 0
        prompt, sides = f"open the {'red' if red else 'quiet'} door {i}", ["I can not", "yes, open it"]
        chosen, rejected = sides if red else sides[::-1]
        rows.append(
            {
                "prompt": user_message(prompt),
                "chosen": assistant_message(chosen),
                "rejected": assistant_message(rejected),
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def reader(tiny_model) -> Reader:
    return Reader(Trunk.load(tiny_model, "cpu"), "", 128)


def moved(reader: Reader, **changes) -> TokenRewardModel:
    """A model as after training: a fresh adapter does nothing."""
    model = TokenRewardModel(reader, SETTINGS.changed(**changes), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def model(reader) -> TokenRewardModel:
    return moved(reader)


@pytest.fixture(scope="module")
def trained(reader, tmp_path_factory):
    """(folder of a fit, its history)."""
    folder = tmp_path_factory.mktemp("fit") / "ava_p"
    return folder, fit_token_rewards(reader, reader.pairs(preferences()), folder, SETTINGS)


def test_fits_side_by_side_are_what_they_are_in_turn(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # the same arithmetic in both
    rows, settings = preferences(), SETTINGS.changed(max_steps=4)
    wanted = {"ava_p": (settings, [0, 1]), "ava_d": (settings.changed(objective="ava_d"), [2])}
    one, other = (Reader(Trunk.load(tiny_model, "cpu"), "", 128) for _ in range(2))
    for reader in (one, other):
        reader.read(reader.pairs(rows).prompts)  # in one order, or rounding differs and Adam's first steps enlarge it
    together = fit_side_by_side(one, one.pairs(rows), tmp_path / "together", wanted)
    assert {name: len(models) for name, models in together.items()} == {"ava_p": 2, "ava_d": 1}
    pairs = other.pairs(rows)
    for name, (own, seeds) in wanted.items():
        for model, seed in zip(together[name], seeds, strict=True):
            history = fit_token_rewards(other, pairs, tmp_path / "alone", own, seed)
            assert read_json(tmp_path / "together" / f"{name}_{seed}" / "fit.json")["history"] == history
            alone = load_token_rewards(tmp_path / "alone", reader=other).rewards(pairs)
            torch.testing.assert_close(model.rewards(pairs), alone, atol=1e-6, rtol=0)


def test_a_token_is_believed_the_same_alone_and_in_any_company(model, reader):
    together = model.tokens(reader.answers(PROMPTS, ANSWERS))
    for prompt, answer, found in zip(PROMPTS, ANSWERS, together, strict=True):
        (alone,) = model.tokens(reader.answers([prompt], [answer]))
        assert alone.tokens == found.tokens
        assert torch.allclose(alone.mean, found.mean, atol=1e-5) and torch.allclose(alone.sd, found.sd, atol=1e-5)


def test_a_tokens_reward_does_not_see_what_follows(model, reader):
    short, long = model.tokens(reader.answers(["help me"] * 2, ["first get ready", "first get ready, then open it."]))
    same = len(short.tokens) - 1  # all but the end of the turn
    assert short.tokens[:same] == long.tokens[:same]
    assert torch.allclose(short.mean[:same], long.mean[:same], atol=1e-5), "a reward must be causal"


def test_equal_to_pefts_activated_lora_over_the_whole_text(trained, reader):
    folder, _ = trained
    model = load_token_rewards(folder, reader=reader)
    peft = load_policy(reader.trunk.base_model, "cpu", adapter=folder)
    heads = load_file(folder / "heads.safetensors")
    answers = reader.answers(PROMPTS, ANSWERS)
    for row, found in enumerate(model.tokens(answers)):
        ids = torch.tensor([answers.prompts[row] + answers.tails[row]])
        output = peft(input_ids=ids, output_hidden_states=True)
        own = output.hidden_states[-1][0, len(answers.prompts[row]) + reader.opening :]
        mean = own @ heads["mean"][0] + heads["bias"][0]
        assert torch.allclose(found.mean, mean, atol=1e-4), "the adapter must be active on the answer, and there alone"
        q_values = model.beliefs(answers, [row]).q_values[0]
        log_policy = output.logits[0].log_softmax(-1)
        start = len(answers.prompts[row]) + reader.opening
        wanted = [log_policy[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])]
        assert q_values.tolist() == pytest.approx(wanted, abs=1e-4), "Q of a token is read from the state before it"


@torch.no_grad()
def test_the_saved_adapter_generates_as_the_adapted_model_would(trained, reader):
    folder, _ = trained
    model, prompts = load_token_rewards(folder, reader=reader), ["open the red door 0", "help me"]
    said = generate(
        load_policy(reader.trunk.base_model, "cpu", adapter=folder), reader.trunk.tokenizer, prompts, 6, temperature=0
    )
    for prompt, text in zip(prompts, said, strict=True):
        answers, tokens = reader.answers([prompt], ["x"]), list(reader.invocation)
        for _ in range(6):
            before = reader.read(answers.prompts)
            place = torch.arange(len(tokens)) + before.lengths
            states = model.causal.base_model(
                input_ids=torch.tensor([tokens]), position_ids=place.unsqueeze(0), past_key_values=as_cache(before)
            ).last_hidden_state
            tokens.append(int(model.causal.get_output_embeddings()(states[:, -1]).argmax()))
            if tokens[-1] == reader.trunk.tokenizer.eos_token_id:
                break
        wanted = reader.trunk.tokenizer.decode(tokens[reader.opening :], skip_special_tokens=True)
        assert text == wanted.strip(), "direct optimisation: the folder is the policy behind Q"


def test_prompts_are_read_once_and_may_be_forgotten(tiny_model):
    keeping, forgetting = (Reader(Trunk.load(tiny_model, "cpu"), "", 128, keep_gb=size) for size in (1.0, 0.0))
    found = [moved(reader).rewards(reader.answers(PROMPTS, ANSWERS)) for reader in (keeping, forgetting)]
    assert torch.allclose(*found, atol=1e-5)
    assert len(keeping.cached) == 3 and not forgetting.cached, "three of the four prompts differ"


def test_one_adapter_per_model_and_one_trunk_for_all(reader):
    first, second = (TokenRewardModel(reader, SETTINGS, seed) for seed in (0, 0))
    assert first.causal.get_input_embeddings().weight is reader.trunk.model.get_input_embeddings().weight
    before = second.rewards(reader.answers(PROMPTS, ANSWERS))
    train_token_rewards(first, reader.pairs(preferences(6)), seed=0)
    assert torch.equal(second.rewards(reader.answers(PROMPTS, ANSWERS)), before), "a fit must leave other models alone"
    assert not torch.allclose(first.rewards(reader.answers(PROMPTS, ANSWERS)), before)


@pytest.mark.parametrize("objective", ["bradley_terry", "ava_p"])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_pairs_are_learned(reader, objective, readout):
    model = TokenRewardModel(reader, SETTINGS.changed(objective=objective, readout=readout, max_steps=60))
    pairs = reader.pairs(preferences())
    train_token_rewards(model, pairs, seed=0)
    rewards = model.rewards(pairs)
    assert (rewards[:24] > rewards[24:]).float().mean() > 0.9


@pytest.mark.parametrize("form", ["printed", "stable"])
@pytest.mark.parametrize("attention", ["none", "printed", "scaled"])
@pytest.mark.parametrize("objective", ["ava_d", "ava_p"])
def test_every_variant_trains_adapter_and_heads(reader, form, attention, objective):
    settings = SETTINGS.changed(form=form, attention=attention, objective=objective, max_steps=4)
    model = TokenRewardModel(reader, settings)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    history = train_token_rewards(model, reader.pairs(preferences(6)), seed=0)
    assert len(history) == 4 and all(math.isfinite(row["loss"]) for row in history)
    still = [i for i, (old, new) in enumerate(zip(before, model.parameters(), strict=True)) if torch.equal(old, new)]
    unused = [] if attention != "none" else [len(before) - 2, len(before) - 1]  # query and key of the attention
    assert still == unused


def test_scaled_attention_has_mean_one_and_printed_sums_to_one(reader):
    answers = reader.answers(PROMPTS, ANSWERS)
    plain, printed, scaled = (
        moved(reader, attention=name).beliefs(answers, [0, 1]) for name in ("none", "printed", "scaled")
    )
    for row in range(2):
        real = plain.mask[row]
        weights = (printed.mean / plain.mean)[row][real]
        assert weights.sum().item() == pytest.approx(1, abs=1e-4)
        assert torch.allclose((scaled.mean / plain.mean)[row][real], weights * int(real.sum()), rtol=1e-3)
        assert torch.allclose((printed.log_sd - plain.log_sd).exp()[row][real], weights, rtol=1e-3)


def test_the_loss_of_demonstrations_never_reads_the_rejected():
    b = TokenBeliefs(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    loss = token_loss(b, None, SETTINGS.changed(objective="ava_d", lam=1.0))
    assert loss.item() == pytest.approx(0.5 * math.log(2 * math.pi))  # a delta of 0 at the mean of N(0, 1)


def test_heads_start_at_the_priors_deviation_and_are_clamped():
    heads = TokenHeads(8, seed=0)
    assert heads(torch.randn(2, 3, 8))[1].abs().max() == 0
    heads.bias.data[1] = 99.0
    assert heads(torch.zeros(1, 1, 8))[1].item() == LOG_SD[1]


def test_a_saved_fit_believes_the_same_and_is_kept(trained, reader):
    folder, history = trained
    answers = reader.answers(PROMPTS, ANSWERS)
    fresh = TokenRewardModel(reader, SETTINGS)
    train_token_rewards(fresh, reader.pairs(preferences()), seed=0)
    for found in (load_token_rewards(folder, reader=reader), load_token_rewards(folder, "cpu")):
        assert torch.allclose(found.rewards(answers), fresh.rewards(answers), atol=1e-5)
    stamp = (folder / "heads.safetensors").stat().st_mtime_ns
    assert fit_token_rewards(reader, reader.pairs(preferences()), folder, SETTINGS) == history
    assert (folder / "heads.safetensors").stat().st_mtime_ns == stamp, "a finished fit is not made again"
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_k_lowers_rewards_by_the_deviation(model, reader):
    answers = reader.answers(PROMPTS, ANSWERS)
    found = model.tokens(answers)
    lowered = torch.stack([(token.mean - 2 * token.sd).mean() for token in found])
    assert torch.allclose(model.summary(answers, k=2.0)[0], lowered, atol=1e-5)


def test_the_reward_that_q_implies_equals_a_loop(model, reader):
    answers = reader.answers(PROMPTS, ANSWERS)
    rewards, implied = model.rewards_and_implied(answers)
    assert torch.allclose(rewards, model.rewards(answers), atol=1e-5)
    for row in range(len(PROMPTS)):
        q = model.beliefs(answers, [row]).q_values[0].tolist()
        deltas = [own - 0.9 * following for own, following in zip(q, [*q[1:], 0.0], strict=True)]
        assert implied[row].item() == pytest.approx(sum(deltas) / len(deltas), abs=1e-4)


def test_as_a_reward_function_it_logs_what_it_believes(model):
    logged, completions = {}, [assistant_message(text) for text in ("no", "")]
    prompts = [user_message("help me")] * 2
    plain = TokenRewardFunction(model)(prompts, completions, log_metric=logged.__setitem__)
    guarded = TokenRewardFunction(model, k=1.0)(prompts, completions)
    added = TokenRewardFunction(model, readout="sum")(prompts, completions)
    assert added[1] == pytest.approx(plain[1]) and added[0] != plain[0], "an empty answer is its end token alone"
    assert all(isinstance(value, float) for value in plain) and all(a > b for a, b in zip(plain, guarded, strict=True))
    assert logged["belief/mean"] == pytest.approx(sum(plain) / 2) and logged["belief/sd"] > 0
    assert TokenRewardFunction(model).fingerprint != TokenRewardFunction(model, k=1.0).fingerprint
    before = TokenRewardFunction(model).fingerprint
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.1)
    assert TokenRewardFunction(model).fingerprint != before, "other weights, another reward"


def test_beliefs_that_are_not_finite_name_the_row(reader):
    model = moved(reader)
    model.heads.mean.data.fill_(math.nan)
    with pytest.raises(InputError, match="row 0 is not finite"):
        model.rewards(reader.answers(["help me"], ["no"]))
    with pytest.raises(InputError, match="loss of step 1 is not finite|is not finite"):
        train_token_rewards(model, reader.pairs(preferences(6)), seed=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "ava"}, "'bradley_terry', 'ava_d' or 'ava_p'"),
        ({"form": "logits"}, "'printed' or 'stable'"),
        ({"readout": "median"}, "'last', 'mean' or 'sum'"),
        ({"attention": "yes"}, "'none', 'printed' or 'scaled'"),
        ({"alpha": 0.0}, "alpha = 0.0: it must be greater than 0"),
        ({"gamma": -1.0}, "gamma = -1.0: it must be greater than or equal to 0"),
        ({"lam": math.nan}, "lam = nan: it must be a finite number"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SETTINGS.changed(**changes)


def test_damaged_folders_name_the_file(trained, reader, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_token_rewards(tmp_path / "nowhere", reader=reader)
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    save_file({"mean": torch.zeros(1, 3)}, copy / "heads.safetensors")
    with pytest.raises(InputError, match=r"heads.safetensors: \(1, 3\) for mean, not \(1, 32\)"):
        load_token_rewards(copy, reader=reader)
    (copy / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="adapter_model.safetensors: damaged"):
        load_token_rewards(copy, reader=reader)
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors: no such file"):
        load_token_rewards(copy, reader=reader)
