"""Other people's models: what this library says of them before hours are spent is what comes of trying it."""

import re
import shutil

import pytest
import torch
from conftest import write_tiny_model
from datasets import Dataset
from fit_set import fit_set
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import tiny_words, write_model
from transformers import AutoModelForCausalLM, DistilBertConfig, DistilBertForSequenceClassification

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.cli import main
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data.margins import embed_sides
from srmir_lib.errors import InputError
from srmir_lib.models import generation
from srmir_lib.models.abilities import abilities
from srmir_lib.models.decoding import DECODED
from srmir_lib.models.generation import end_tokens, generate
from srmir_lib.models.kinds import shared_problem
from srmir_lib.models.loading import fingerprint, load_policy, load_tokenizer, load_trunk
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.training import train_dpo, train_grpo, train_sft
from srmir_lib.reward_models.pooled import PairTokenizer, collate, load_classifier
from srmir_lib.reward_models.probes import Probes
from srmir_lib.reward_models.separate import SeparateScorer
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.policies import DPOSettings, GRPOSettings, SFTSettings
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe

CATEGORIES = ["insult", "crimes"]
SETTINGS = RewardSettings(max_steps=2, batch_size=2, learning_rate=1e-2, lora_rank=2, lora_alpha=4, max_length=250)
COMMON = {
    "learning_rate": 1e-4,
    "lr_scheduler": "constant",
    "max_steps": 1,
    "micro_batch": 2,
    "lora_r": 2,
    "lora_alpha": 4,
    "seed": 0,
    "device": "cpu",
}
GROUP = {
    "prompts_per_step": 1,
    "num_generations": 2,
    "num_iterations": 1,
    "max_completion_length": 6,
    "temperature": 1.0,
    "beta": 0.0,
    "epsilon": 0.2,
    "scale_rewards": "group",
    "loss_type": "grpo",
    "use_bias_correction_kl": True,
    "monitor_every": 0,
    "checkpoint_every": 0,
}
DECODER = {"generation", "shared", "separate", "margins"}
WORKS = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "gemma": DECODER,
    "gemma2": DECODER,
    "gemma3_text": DECODER,
    "gpt_neox": DECODER,
    "gpt2": DECODER - {"shared"},
    "opt": DECODER - {"shared"},
    "bloom": DECODER - {"shared"},
    "cohere": DECODER - {"separate"},
    "granite": DECODER - {"separate"},
    "mamba": {"generation", "margins"},
    "bert": {"pooled", "margins"},
    "t5": set(),
}
"""What works with a model of each type."""


def preferences() -> dict:
    rows = [
        {
            "prompt": user_message(f"{name} {at}"),
            "chosen": assistant_message("no"),
            "rejected": assistant_message("yes"),
        }
        for at in range(4)
        for name in CATEGORIES
    ]
    return {"train": Dataset.from_list(rows).add_column("category", CATEGORIES * 4)}


def try_generation(folder, scratch):
    assert len(Trunk.load(folder, "cpu").generate(["insult 1", "a"], 3)) == 2


def try_shared(folder, scratch):
    fit_set(folder, preferences(), scratch / "shared", CATEGORIES, SETTINGS)
    models = ShadowRewardModels.load(scratch / "shared", "cpu")
    scores = models.score(["insult 1", "crimes and more 2"], ["no", "yes"])
    assert torch.allclose(models.score(["insult 1"], ["no"]), scores[:1], atol=1e-5)


def try_separate(folder, scratch):
    fit_set(folder, preferences(), scratch / "separate", CATEGORIES, SETTINGS, design="separate")
    models = ShadowRewardModels.load(scratch / "separate", "cpu")
    scores = models.score(["insult 1", "crimes and more 2"], ["no", "yes"])
    assert torch.allclose(models.score(["insult 1"], ["no"]), scores[:1], atol=1e-5)


def try_pooled(folder, scratch):
    model, tokenizer = load_classifier(folder, num_labels=2)
    rows = PairTokenizer(max_tokens=40, prompt_tokens=8).encode(
        tokenizer, ["how do i", "why"], ["no", "take this then that"]
    )
    assert model(**collate(rows, tokenizer)).logits.shape == (2, 2)


def try_margins(folder, scratch):
    left, right = embed_sides(*load_trunk(folder, "cpu"), ["how do i", "why"], ["no", "i cannot"], ["yes", "sure"])
    assert left.shape == right.shape and not torch.allclose(left, right)


TRIES = {
    "generation": try_generation,
    "shared": try_shared,
    "separate": try_separate,
    "pooled": try_pooled,
    "margins": try_margins,
}


def one_line(error) -> str:
    text = str(error.value if hasattr(error, "value") else error)
    assert "\n" not in text and len(text) < 400, text
    return text


@pytest.mark.parametrize("kind", WORKS)
def test_what_is_said_of_a_model_is_what_comes_of_trying(kind, tmp_path):
    folder = write_model(kind, tmp_path / kind)
    said = {ability.name: ability for ability in abilities(folder)}
    assert {name for name, ability in said.items() if ability.works} == WORKS[kind]
    for name, ability in said.items():
        if ability.works:
            TRIES[name](folder, tmp_path)
            continue
        with pytest.raises(InputError) as error:
            TRIES[name](folder, tmp_path)
        assert ability.why in one_line(error), name
        assert not (tmp_path / name).exists(), "nothing is written"
        assert "; " in ability.why, "a reason and what to do"


SHARED = [kind for kind, works in WORKS.items() if "shared" in works]


@pytest.mark.parametrize("kind", SHARED)
def test_scores_of_the_shared_design_equal_pefts_activated_lora(kind, tmp_path):
    """PEFT reads text and question at once, each adapter for itself."""
    folder = write_model(kind, tmp_path / kind)
    trunk, texts = Trunk.load(folder, "cpu"), ["open the red door", "then check it", "a"]
    probes = Probes(trunk, CATEGORIES, SizedProbe())
    for up in probes.up.values():
        up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    ids = trunk.tokenizer(texts)["input_ids"]
    ours = torch.zeros(3, 2)
    for rows, states in trunk.prefill(ids, ["x", "x", "y"]):
        ours[rows] = probes(trunk, states).detach()
    probes.save(tmp_path, trunk.model.base_model_prefix, "base")
    peft = PeftModel.from_pretrained(load_policy(folder, "cpu"), tmp_path / "insult", adapter_name="insult")
    peft.load_adapter(tmp_path / "crimes", "crimes")
    for column, category in enumerate(CATEGORIES):
        peft.set_adapter(category)
        head = load_file(tmp_path / category / "head.safetensors")["score.weight"][0]
        for row, text in enumerate(ids):
            whole = torch.tensor([text + probes.question(column)])
            with torch.no_grad():
                last = peft(input_ids=whole, output_hidden_states=True).hidden_states[-1][0, -1]
            assert float(last @ head) == pytest.approx(float(ours[row, column]), abs=1e-4)
    assert ours.std() > 0.01


def test_reasons_do_not_contradict_themselves(tmp_path):
    """A decoder was refused for its "full_attention", with the advice to take a decoder with full attention."""
    for kind, fix in (("gpt2", "design separate"), ("bloom", "design separate"), ("mamba", "design pooled")):
        config = load_policy(write_model(kind, tmp_path / kind), "cpu").config
        why = shared_problem(config)
        assert fix in why and "full attention" not in why and "full_attention" not in why, why


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "gemma2"])
def test_a_window_is_no_hindrance_while_the_texts_fit(kind, tmp_path):
    """To the token: as long as the last token of a question sees the first of the text, the window changes nothing."""
    wide = write_model(kind, tmp_path / "wide", sliding_window=200)
    trunk, narrow = Trunk.load(wide, "cpu"), shutil.copytree(wide, tmp_path / "narrow")
    probes = Probes(trunk, CATEGORIES, SizedProbe())
    question = probes.question(0)
    window = 12 + len(question)
    write_json(narrow / "config.json", read_json(narrow / "config.json") | {"sliding_window": window})
    other = Trunk.load(narrow, "cpu")

    def at_once(trunk, text) -> float:
        with torch.no_grad():
            states = trunk.decoder(input_ids=torch.tensor([text + question])).last_hidden_state
        return float(states[0, -1] @ probes.heads[0])

    fits, longer = (list(range(20, 20 + length)) for length in (12, 13))
    ((_, states),) = other.prefill([fits])
    assert float(probes(other, states)[0, 0].detach()) == pytest.approx(at_once(other, fits), abs=1e-5)
    assert at_once(other, fits) == pytest.approx(at_once(trunk, fits), abs=1e-5)
    assert at_once(other, longer) != pytest.approx(at_once(trunk, longer), abs=1e-5), "the window hides the first token"
    other.check_reach([fits], len(question))
    with pytest.raises(InputError, match=f"row 1: {window + 1} tokens, more than the sliding window of") as error:
        other.check_reach([fits, longer], len(question))
    assert "use design separate" in one_line(error)
    said = {ability.name: ability for ability in abilities(narrow)}
    assert said["shared"].works and f"at most {window} tokens" in said["shared"].why


def test_texts_longer_than_the_window_are_refused_in_training_and_in_a_file(tmp_path, capsys):
    pairs, folder = preferences(), write_model("mistral", tmp_path / "model", sliding_window=64)
    fit_set(folder, pairs, tmp_path / "set", CATEGORIES, SETTINGS)
    long = pairs["train"].to_list()
    long[3]["chosen"] = assistant_message("no " * 64)
    with pytest.raises(InputError, match=r"row 3: \d+ tokens, more than the sliding window of 64"):
        fit_set(folder, {"train": Dataset.from_list(long)}, tmp_path / "long", CATEGORIES, SETTINGS)
    rows = [{"prompt": "insult 1", "response": answer} for answer in ("no", "no " * 64)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{row}\n".replace("'", '"') for row in rows))
    command = [
        "score",
        "--models",
        str(tmp_path / "set"),
        "--input",
        str(source),
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    assert main([*command, "--raw", "--device", "cpu"]) == 2
    assert re.search(r"row 2: \d+ tokens, more than the sliding window of 64", capsys.readouterr().err)
    assert not (tmp_path / "o.jsonl").exists()
    fit_set(folder, {"train": Dataset.from_list(long)}, tmp_path / "separate", CATEGORIES, SETTINGS, design="separate")


def test_what_no_rule_knows_is_told_by_a_few_tokens(tmp_path, monkeypatch):
    """Architectures that read in parts otherwise than at once, or not at all, with the rules out of the way."""
    monkeypatch.setattr("srmir_lib.models.trunk.shared_problem", lambda config: "")
    for kind, said, sizes in (("gptj", "apart", {"rotary_dim": 4}), ("bloom", "not read as it is .ValueError", {})):
        folder = write_model(kind, tmp_path / kind, **sizes)
        with pytest.raises(InputError, match=said) as error:
            fit_set(folder, preferences(), tmp_path / "set", CATEGORIES, SETTINGS)
        assert "use design separate" in one_line(error)


def test_a_classifier_has_the_width_of_the_last_state(tmp_path):
    """OPT-350m projects its states to another size."""
    trunk = Trunk.load(write_model("opt", tmp_path / "opt"), "cpu")
    fit_set(trunk.base_model, preferences(), tmp_path / "set", CATEGORIES, SETTINGS, design="separate")
    assert isinstance(ShadowRewardModels.load(tmp_path / "set", trunk).scorer, SeparateScorer)
    head = load_file(tmp_path / "set" / "crimes" / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert head.shape == (1, 16)


def test_an_encoder_need_not_have_what_berts_have(tmp_path):
    """`attention_probs_dropout_prob`, which is turned off in training, has another name in a DistilBERT."""
    folder = write_model("bert", tmp_path / "distil")
    sizes = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
    DistilBertForSequenceClassification(DistilBertConfig(**sizes)).save_pretrained(folder)
    model, _ = load_classifier(folder, num_labels=3, attention_probs_dropout_prob=0.0)
    assert model.config.num_labels == 3


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """The folder of a PEFT adapter of `tiny_model`, as people have it: with the tokenizer beside it."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    policy = get_peft_model(load_policy(tiny_model, "cpu"), LoraConfig(r=2, target_modules="all-linear"))
    policy.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


LOADERS = [Trunk.load, load_trunk, load_tokenizer, load_policy, load_classifier, fingerprint, abilities]


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__qualname__)
def test_an_adapter_is_called_one(load, adapter, tiny_model, tmp_path):
    with pytest.raises(InputError) as error:
        load(adapter)
    assert f"{adapter}: an adapter: name its base model ({tiny_model})" in one_line(error)
    both = shutil.copytree(tiny_model, tmp_path / "both")  # transformers would put the adapter on, in silence
    for file in adapter.glob("adapter*"):
        shutil.copy(file, both)
    with pytest.raises(InputError, match="an adapter: name its base model"):
        load(both)


def test_an_adapter_is_called_one_on_the_command_line(adapter, tmp_path, capsys):
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"prompt": "a", "chosen": "no", "rejected": "yes"}\n')
    command = ["annotate", "--model", str(adapter), "--input", str(source), "--output", str(tmp_path / "o.jsonl")]
    assert main(command) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "an adapter: name its base model" in said
    assert not (tmp_path / "o.jsonl").exists()


WORDS = {
    "no pad token: the end token pads": ({"pad_token": None}, ""),
    "no pad and no end": ({"pad_token": None, "eos_token": None}, "neither pad nor eos token; set pad_token"),
    "no template": ({"chat_template": None}, "has no chat template; use an instruction-tuned model or add one"),
}


@pytest.mark.parametrize("what", WORDS)
def test_a_tokenizer_that_lacks_something_is_told_what(what, tmp_path):
    options, why = WORDS[what]
    folder = write_model("llama", tmp_path / "model", tiny_words(**options))
    said = {ability.name: ability for ability in abilities(folder)}
    for name in DECODER:
        assert said[name].works == (not why) and why in said[name].why
        if not why:
            TRIES[name](folder, tmp_path)
            continue
        with pytest.raises(InputError) as error:
            TRIES[name](folder, tmp_path)
        assert why in one_line(error)


def test_a_model_whose_answers_never_end_is_told_so(tmp_path):
    words = tiny_words(eos_token=None)
    words.chat_template = words.chat_template.replace("<|end|>", "\n\n")
    folder = write_model("llama", tmp_path / "model", words)
    said = {ability.name: ability for ability in abilities(folder)}
    assert not said["generation"].works and said["shared"].works and said["margins"].works
    trunk = Trunk.load(folder, "cpu")
    with pytest.raises(InputError) as error:
        trunk.generate(["a"], 3)
    assert one_line(error) == said["generation"].why and "set eos_token" in said["generation"].why
    assert len(trunk.generate(["a"], 3, until="a")) == 1, "what ends with a text has an end"
    policy = trunk.model
    policy.generation_config.eos_token_id = 7
    assert len(generate(policy, trunk.tokenizer, ["a"], 3)) == 1


def test_other_models_than_causal_ones_are_called_what_they_are(tmp_path):
    bert, t5 = write_model("bert", tmp_path / "bert"), write_model("t5", tmp_path / "t5")
    headless = shutil.copytree(write_model("llama", tmp_path / "llama"), tmp_path / "headless")
    write_json(headless / "config.json", read_json(headless / "config.json") | {"architectures": ["LlamaModel"]})
    looks_ahead = shutil.copytree(bert, tmp_path / "looks_ahead")
    write_json(looks_ahead / "config.json", read_json(bert / "config.json") | {"architectures": ["BertLMHeadModel"]})
    for folder, said in (
        (bert, "BertForSequenceClassification: an encoder"),
        (looks_ahead, "BertLMHeadModel: an encoder"),
        (t5, "T5ForConditionalGeneration: an encoder-decoder"),
        (headless, "LlamaModel: has no language-model head; use the checkpoint that it was made from"),
    ):
        with pytest.raises(InputError, match=said) as error:
            Trunk.load(folder, "cpu")
        one_line(error)
    with pytest.raises(InputError, match="an encoder-decoder"):
        load_trunk(t5, "cpu")


def test_weights_in_pickles_are_called_so(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for ask in (fingerprint, abilities):
        with pytest.raises(InputError, match=r"its weights are pickles \(pytorch_model.bin\); save it as safetensors"):
            ask(folder)


def speaker(folder, word: str, generation_end=None, **options):
    """A GPT-NeoX that says one word for ever, and its tokenizer; its generation configuration ends at another token."""
    tokenizer = tiny_words(**options)
    write_model("gpt_neox", folder, tokenizer)
    policy = AutoModelForCausalLM.from_pretrained(folder)
    state = policy.gpt_neox.final_layer_norm
    torch.nn.init.zeros_(state.weight), torch.nn.init.ones_(state.bias)
    torch.nn.init.zeros_(policy.get_output_embeddings().weight)
    policy.get_output_embeddings().weight.data[tokenizer.convert_tokens_to_ids(word)] = 10.0
    policy.generation_config.eos_token_id = generation_end
    policy.save_pretrained(folder)
    return folder


ENDS = {
    "the template's end of turn": ("<|end|>", {"eos_token": "<|pad|>"}, 9),
    "the tokenizer's end token": ("<|system|>", {"eos_token": "<|system|>"}, 9),
    "one of the generation configuration": ("<|user|>", {}, [9, 2]),
    "none is another": ("<|end|>", {}, None),
    "the tokenizer has none": ("<|end|>", {"eos_token": None}, 9),
}
"""What a model says for ever, of which an answer must consist: <|end|> is 1, <|user|> 2."""


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("what", ENDS)
def test_an_answer_ends_at_any_of_its_ends(what, ours, tmp_path, monkeypatch):
    word, options, end = ENDS[what]
    folder = speaker(tmp_path / "model", word, end, **options)
    policy, tokenizer, steps = load_policy(folder, "cpu"), load_tokenizer(folder), []
    monkeypatch.setattr(generation, "DECODED", (*DECODED, "gpt_neox") if ours else ())
    policy.base_model.register_forward_hook(lambda *_: steps.append(1))
    assert generate(policy, tokenizer, ["a", "open it"], 6) == ["", ""]
    assert len(steps) == 1
    assert tokenizer.convert_tokens_to_ids(word) in end_tokens(tokenizer, policy.generation_config)


@pytest.mark.parametrize("what", ENDS)
def test_an_answer_in_training_ends_there_too(what, tmp_path):
    word, options, end = ENDS[what]
    folder = speaker(tmp_path / "model", word, end, **options)
    prompts = Dataset.from_list([{"prompt": user_message("open it")}] * 2)

    def nothing(completions, **columns):
        return [0.0] * len(completions)

    (row,) = train_grpo(folder, prompts, nothing, tmp_path / "policy", GRPOSettings(**COMMON, **GROUP))
    assert row["completions/mean_length"] == 1 and row["completions/clipped_ratio"] == 0


@pytest.mark.parametrize("train, kind", [(train_sft, SFTSettings), (train_dpo, DPOSettings)])
def test_demonstrations_may_end_with_the_templates_own_end_of_turn(train, kind, tmp_path):
    """A base model's tokenizer often ends texts with one token, and its template turns with another."""
    words, turn = tiny_words(eos_token="<|pad|>"), assistant_message("no")
    folder = write_model("llama", tmp_path / "model", words)
    row = {"prompt": user_message("open it"), "completion": turn, "chosen": turn, "rejected": assistant_message("yes")}
    settings = kind(**COMMON, batch_size=2, max_length=64, **({"beta": 0.1} if kind is DPOSettings else {}))
    assert len(train(folder, Dataset.from_list([row] * 2), tmp_path / "policy", settings)) == 1
    words.chat_template = words.chat_template.replace("<|end|>", " ")
    words.save_pretrained(folder)
    with pytest.raises(InputError, match="or any special token; let the template end a turn with one"):
        train(folder, Dataset.from_list([row] * 2), tmp_path / "other", settings)


EDITS = {
    "chat template": ("chat_template.jinja", lambda text: text.replace("<|end|>", "<|end|> ")),
    "rope_theta": ("config.json", lambda text: text.replace("10000.0", "500.0")),
    "tokenizer": ("tokenizer.json", lambda text: text.replace('"add_prefix_space": false', '"add_prefix_space": true')),
    "end tokens, where the drafts that are read before a text end": (
        "generation_config.json",
        lambda text: text.replace("{", '{"suppress_tokens": [9],', 1),
    ),
}


@pytest.mark.parametrize("design", ["shared", "separate"])
def test_a_base_model_that_was_edited_is_another(design, tmp_path):
    base = write_tiny_model(tmp_path / "base")
    fit_set(base, preferences(), tmp_path / "set", CATEGORIES, SETTINGS, design=design)
    before = ShadowRewardModels.load(tmp_path / "set", "cpu").score(["insult 1"], ["no"])
    for what, (name, edit) in EDITS.items():
        text = (base / name).read_text()
        assert edit(text) != text, f"{what}: nothing was edited"
        (base / name).write_text(edit(text))
        with pytest.raises(InputError, match="hash mismatch") as error:
            ShadowRewardModels.load(tmp_path / "set", "cpu")
        assert str(base) in one_line(error), what
        (base / name).write_text(text)
    (base / "README.md").write_text("a word about it")
    assert torch.equal(ShadowRewardModels.load(tmp_path / "set", "cpu").score(["insult 1"], ["no"]), before)
