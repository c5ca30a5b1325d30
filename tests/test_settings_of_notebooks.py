"""What the settings of one notebook may not say together, and what they hand to the functions that do the work."""

from pathlib import Path

import pytest

from srmir_lib.errors import InputError
from srmir_lib.runner.notebook import Notebook
from srmir_lib.settings.base import Settings

ROOT = Path(__file__).parents[1]
SHAPE = {"hidden": 8, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 8, "vocab": 9}
TOKENS = {"design": "tokens"}
SHARED = {"a": {"design": "shared"}}


def notebook(number: str) -> Notebook:
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return Notebook.load(path)


def told(number: str, **changes) -> Settings:
    """The settings of a notebook with its own defaults but for `changes`."""
    known = notebook(number)
    return known.model.of(known.defaults, **changes)


@pytest.mark.parametrize(
    ("number", "values", "said"),
    [
        ("01", {"asking": {"needed": 4}}, "asking: needed: 4 of 1 samples cannot agree"),
        ("01", {"asking": {"template": "why ?"}}, "asking.template: 'why ?' asks about no prompt"),
        ("01", {"asking": {"template": ""}}, "asking.template = '': it must have at least 1"),
        ("01", {"asking": {"router_question": "x"}}, "asking.router_question: 'x' asks about no prompt"),
        ("01", {"introspection": 0.4}, "introspection = 0.4: it must be greater than or equal to 0.5"),
        ("02", {"swapped": 0.5, "design": "pooled"}, "swapped: design pooled learns from labelled responses as well"),
        ("02", {"lora": ["insult"], "design": "separate"}, "lora: rivals of probes, and design separate has none"),
        ("05", {"signal_prompts": 0}, "signal_prompts = 0: it must be greater than 0"),
        ("04", {"variants": ["own_normalized"]}, "variants: own_normalized pays an answer by its group alone"),
        (
            "04",
            {"variants": ["own_raw", "own_normalized"], "training": {"scale_rewards": "batch"}},
            "variants: own_normalized reads no training.scale_rewards, here batch; leave it group",
        ),
        ("05", {"variants": ["refreshed"]}, "variants: refreshed is paid by changing reward models"),
        (
            "05",
            {"variants": ["router", "refreshed"], "max_steps": 10},
            "refresh.every: 10 updates, of 10 in all: nothing is refreshed; lower it",
        ),
        ("A0", {"dpo": {"rpo_weight": -1.0}}, "dpo.rpo_weight = -1.0: it must be greater than or equal to 0"),
        ("A0", {"batch_size": 40}, "batch_size: GRPO has prompts_per_step * num_generations = 80 sequences an update"),
        ("A0", {"best_of_n": {"micro_batch": 64}}, "micro_batch: 64 must divide batch_size = 80"),
        ("A1", {"seeds": 1}, "seeds = 1: it must be greater than or equal to 2"),
        ("A1", {"held_out": "weather"}, "held_out = 'weather': it must be one of 'insult', 'unfairness', "),
        ("A1", {"variants": [["printed", "last", "none"]]}, "variants.0 = ['printed', 'last', 'none']: it must be"),
        ("A1", {"variants": [{"form": "printed", "readout": "last"}]}, "variants.0.attention: not given"),
        ("A1", {"grpo": {"micro_batch": 30}}, "grpo: micro_batch: 30 must divide prompts_per_step * num_generations"),
        ("A1", {"reading": {"question": "why ?"}}, "reading.question: 'why ?' asks about no prompt"),
        ("A2", {"methods": ["rerank", "rerank_pair"]}, "methods: rerank, rerank_pair; name each once, and dpo, the"),
        ("A2", {"methods": ["dpo", "dpo"]}, "methods: dpo, dpo; name each once, and dpo, the control, too"),
        ("A2", {"methods": ["dpo", "ppo"]}, "methods.1 = 'ppo': it must be one of 'dpo', 'rerank', "),
        ("A2", {"methods": ["dpo", "online"]}, "methods: dpo, online; none ranks the pool again, add rerank_pair"),
        ("A2", {"rounds": 4}, "rounds: 4 must divide max_steps = 30"),
        ("A2", {"batch_size": 90}, "micro_batch: 40 must divide batch_size = 90"),
        ("06", {"classifier": "referee"}, "classifier: 'referee' is not read beside facts; leave one of them empty"),
        ("A1", {"classifier": "referee"}, "classifier: 'referee' is not read beside facts; leave one of them empty"),
        ("A2", {"classifier": "referee"}, "classifier: 'referee' is not read beside facts; leave one of them empty"),
        ("A2", {"labelled_pairs": 1001}, "labelled_pairs = 1001: it must be less than or equal to 1000"),
        ("A2", {"pool": {"prompts": 30}}, "watching: course_pools and cost_pools are at most pool.prompts = 30"),
        ("A3", {"classifier": "classifier"}, "classifier: 'classifier' is not read beside facts; leave one"),
        ("A3", {"variants": ["one", "most"]}, "variants.1 = 'most': it must be one of 'alpha', 'inverse', "),
        ("A3", {"variants": ["alpha", "random"]}, "variants: alpha, random; name each once, and one, the control, too"),
        ("A3", {"variants": ["one", "one"]}, "variants: one, one; name each once, and one, the control, too"),
        ("A3", {"variants": ["one"]}, "variants = ['one']: it must have at least 2"),
        ("A3", {"tau": 0.0}, "tau = 0.0: it must be greater than 0"),
        ("A3", {"training": {"scale_rewards": "group"}}, "training.scale_rewards: group would take the hardness off"),
        ("A5", {"shape": "maxi"}, "shape: 'maxi' is none of shapes, which has mini, qwen2.5-0.5b, qwen2.5-7b"),
        ("A5", {"shapes": {"mini": SHAPE | {"heads": 3}}}, "shapes.mini: heads: 3 must divide hidden = 8"),
        ("A5", {"shapes": {"mini": [8, 1, 2, 1, 8, 9]}}, "shapes.mini = [8, 1, 2, 1, 8, 9]: it must be"),
        (
            "A5",
            {"training": {"separate_budgets": []}},
            "training: one design has budgets and the other none; give both",
        ),
        ("A5", {"texts": {"shortest": 300}}, "texts: shortest: 300 is longer than completion = 256"),
        ("A5", {"texts": {"group": 1}}, "texts.group = 1: it must be greater than or equal to 2"),
        ("A5", {"memory": {"ours": [64, 0]}}, "memory.ours.1 = 0: it must be greater than 0"),
        ("A5", {"goals": {"linear_vs_eight": 7.0}}, "there is no setting goals.linear_vs_eight; there are linear_vs_"),
        ("A8", {"design": "words"}, "design = 'words': it must be one of 'encoder' or 'tokens'"),
        ("A8", {"reward_models": SHARED}, "reward_models: they need a causal trunk; write design: tokens"),
        ("A8", TOKENS | {"objectives": {}}, "objectives: none, and no reward_models; name at least one"),
        ("A8", TOKENS | {"objectives": {"a": {}}, "reward_models": SHARED}, "reward_models: 'a' is a folder's name"),
        ("A8", {"objectives": {"words": {}}}, "objectives: 'words' is a folder's name"),
        ("A8", {"objectives": {"../a": {}}}, "objectives: '../a' is a folder's name"),
        (
            "A8",
            {"objectives": {"fast": {"speed": 1}}},
            "objectives.fast: there is no setting speed; there are",
        ),
        ("A8", {"objectives": {"a": {"objective": "ava_p"}}}, "objectives.a: objective = 'ava_p': it must be one of "),
        ("A8", {"objectives": {"a": {"targets": "mean"}}}, "objectives.a: targets: bradley_terry has none"),
        ("A8", {"objectives": {"a": {"limit": [1.0]}}}, "objectives.a: limit: [1.0]; give scale, offset and shift"),
        (
            "A8",
            TOKENS | {"objectives": {"a": {"alpha": "high"}}},
            "objectives.a: alpha = 'high': it must be",
        ),
        ("A8", TOKENS | {"reward_models": {"a": {}}}, "reward_models.a: design '' is neither shared nor separate"),
        (
            "A8",
            TOKENS | {"reward_models": {"a": SHARED["a"] | {"rank": 4}}},
            "reward_models.a: there is no setting",
        ),
        ("A5", {"probe": {"text": "bad ?"}}, "probe.text: 'bad ?' must contain {category}"),
        ("A8", {"encoder": {"reading": {"max_tokens": 60}}}, "encoder.reading: max_tokens: 60 leaves no room"),
        ("A8", {"seeds": [1, 1]}, "seeds: [1, 1]; give at least two different whole numbers"),
        ("A8", {"most": {"gptfuzz": -1}}, "most: -1 pairs of gptfuzz; give a number above 0, or 0 for all"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_loaded(number, values, said):
    with pytest.raises(InputError) as refused:
        notebook(number).parameters(values, "here")
    assert str(refused.value).startswith(f"here: {said}") and "\n" not in str(refused.value)


def test_objectives_of_token_rewards_differ_by_their_objective_alone():
    """A1: Bradley-Terry, AVA-p and AVA-d on equal budgets; AVA-d has weights of its own; a variant is another AVA-p."""
    tried = {"form": "printed", "readout": "sum", "attention": "scaled"}
    own = {"training": {"batch_size": 3}, "objective": {"lam": 0.5, "lam_d": 0.25}, "variants": [tried]}
    settings = told("A1", max_steps=7, readout="last", **own)
    fits = {name: fit.model_dump() for name, fit in settings.fits().items()}
    common = {"form": "stable", "readout": "last", "alpha": 1.0, "gamma": 0.9, "attention": "none", "max_steps": 7}
    common |= {"batch_size": 3, "learning_rate": 0.004, "lora_rank": 8, "lora_alpha": 16}
    assert fits == {
        "bradley_terry": common | {"objective": "bradley_terry", "beta": 0.1, "lam": 0.5},
        "ava_p": common | {"objective": "ava_p", "beta": 0.1, "lam": 0.5},
        "ava_d": common | {"objective": "ava_d", "beta": 1.0, "lam": 0.25},
    }
    found = {name: one.model_dump() for name, one in settings.tried().items()}
    assert found == {"ava_p_printed_sum_scaled": fits["ava_p"] | tried}


def test_all_methods_of_one_comparison_have_the_same_updates_and_sequences():
    """A0, 04 and 05 by their own defaults, and those of the studies that have their own."""
    with_rpo = told("A0", dpo={"rpo_weight": 0.5}).runs()
    assert with_rpo["rpo"] == with_rpo["dpo"].changed(sft_weight=0.5) and with_rpo["dpo"].sft_weight == 0
    runs = told("A0").runs()
    assert list(runs) == ["start", "sft", "dpo", "best_of_n", "grpo"]
    assert [runs[name].max_steps for name in runs] == [4, 24, 24, 24, 24]
    assert [runs[name].batch_size for name in ("start", "sft", "dpo", "best_of_n")] == [80, 80, 40, 80]
    assert runs["grpo"] == told("04").grpo() == told("05").grpo()
    assert (runs["grpo"].prompts_per_step, runs["grpo"].num_generations) == (10, 8)
    assert {told("A1").policies().num_generations, told("A7").training.num_generations} == {4}


def test_policies_of_token_rewards_are_trained_with_their_own_steps():
    settings = told("A1", seed=5, grpo={"max_steps": 4, "readout": "sum"})
    rules = settings.policies()
    assert (rules.max_steps, rules.seed, rules.beta, rules.learning_rate) == (4, 5, 0.05, 0.004)
    assert (rules.monitor_every, rules.checkpoint_every, settings.max_steps) == (0, 0, 200)


def test_methods_on_real_pairs_are_the_common_settings_with_their_own_changes():
    """A8, either design."""
    encoder = {"fine_tuning": {"epochs": 5.0}, "reading": {"max_tokens": 200}}
    objectives = {"plain": {}, "slow": {"learning_rate": 1e-3, "objective": "margin"}}
    found = told("A8", objectives=objectives, encoder=encoder).encoders()
    numbers = {name: (own.epochs, own.learning_rate, own.objective) for name, own in found.items()}
    assert numbers == {"plain": (5.0, 2e-4, "bradley_terry"), "slow": (5.0, 1e-3, "margin")}
    trunk = {"reward_model": {"max_steps": 3}, "token_rewards": {"max_steps": 9}, "probe": {"text": "is {category} ?"}}
    models = {"probe": {"design": "shared", "max_steps": 5}, "whole": {"design": "separate"}}
    settings = told(
        "A8", design="tokens", objectives={"ava": {"objective": "ava_p"}}, reward_models=models, trunk=trunk
    )
    rivals = {name: (design, own.max_steps, own.probe.text) for name, (design, own) in settings.rivals().items()}
    assert rivals == {"probe": ("shared", 5, "is {category} ?"), "whole": ("separate", 3, "is {category} ?")}
    assert {own.probe.rank for _, own in settings.rivals().values()} == {8}, "the rank of the reward models"
    (ava,) = settings.tokens().values()
    assert (ava.objective, ava.max_steps, ava.readout) == ("ava_p", 9, "mean")


def test_both_designs_of_the_study_of_cost_are_trained_alike_but_for_their_rates_and_budgets():
    training = {"shared_budgets": [2, 4], "separate_learning_rate": 0.5}
    settings = told("A5", training=training, probe={"rank": 2, "alpha": 6, "tokens": 0})
    (shared, few), (separate, more) = settings.plans().values()
    assert list(settings.plans()) == ["shared", "separate"] and (few, more) == ([2, 4], [60, 120, 240])
    assert separate.changed(learning_rate=0.006) == shared and separate.learning_rate == 0.5
    assert (shared.lora_rank, shared.lora_alpha, shared.batch_size, shared.unknown_ratio) == (2, 6, 8, 0.5)
    assert shared.probe == settings.probe and (shared.probe.rank, shared.probe.tokens) == (2, 0)
