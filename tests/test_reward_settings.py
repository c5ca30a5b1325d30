"""What 02 and 03 are told: which sets of reward models that means, and what is refused before anything is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from srmir_lib.errors import InputError
from srmir_lib.reward_models.fit import planned_sets
from srmir_lib.runner.notebook import Notebook, load_values
from srmir_lib.settings.reward_models import ShadowSettings
from srmir_lib.settings.reward_training import (
    EncoderSettings,
    RewardSettings,
    SizedProbe,
    check_folders,
    check_objectives,
)

ROOT = Path(__file__).parents[1]
SECOND, THIRD = (Notebook.load(ROOT / f"notebooks/{n}.ipynb") for n in ("02_shadow_reward_models", "03_margins"))
OF_ENCODER = list(EncoderSettings.model_fields)
MIXED = {"one": {"epochs": 1.0}, "two": {"lora_rank": 2}}


def of_preset(preset: str, **changes) -> ShadowSettings:
    values = load_values(ROOT / f"params/{preset}/02_shadow_reward_models.yaml")
    return SECOND.model.of(SECOND.defaults | values | changes)


def test_the_sets_of_02_differ_in_what_their_names_say():
    """By hand, from the parameter file of towns, what is changed here, and the defaults of 02."""
    sets = of_preset("towns", max_steps=160).sets(["insult", "privacy"])
    seven = RewardSettings(
        max_steps=160,
        batch_size=8,
        learning_rate=3e-4,
        lora_rank=4,
        lora_alpha=8,
        max_length=192,
        cross_ratio=1.0,
        unknown_ratio=0.5,
    )
    names = {"insult": "insult", "unfairness": "unfairness", "crimes": "crime", "physical_harm": "injury"}
    names |= {"mental_health": "distress", "privacy": "privacy", "ethics": "morals"}
    asked = SizedProbe(text="<|user|>is this wrong : {category} ?<|end|><|assistant|>", names=names, tokens=9)
    seven, alone = seven.changed(probe=asked), "<|user|>is this wrong ?<|end|><|assistant|>"
    both = ["insult", "privacy"]
    single = seven.changed(max_steps=320, learning_rate=5e-5, probe=asked.changed(text=alone))
    assert sets == {
        "shadow_rms": (both, seven, "shared", "own"),
        "single_rm": (["all"], single, "shared", "own"),
        "cross_rms": (both, seven, "shared", "cross"),
    }


def test_a_lora_rival_is_trained_like_its_probe_at_the_rate_of_a_model_on_its_own():
    settings = of_preset("towns", lora=["privacy"])
    assert settings.sets(["insult", "privacy"]) == of_preset("towns").sets(["insult", "privacy"])
    (_, seven, *_), (_, single, *_) = (settings.sets(["privacy"])[name] for name in ("shadow_rms", "single_rm"))
    assert settings.rival() == seven.changed(learning_rate=single.learning_rate)
    with pytest.raises(InputError, match="lora: no pairs of privacy; there are those of insult, crimes"):
        planned_sets(settings, ["insult", "crimes"], Path)
    with pytest.raises(InputError, match="lora: a category twice"):
        of_preset("towns", lora=["privacy", "privacy"])


def test_an_encoder_is_one_set():
    ((name, (categories, settings, design, training)),) = of_preset("realdata").sets(["insult"]).items()
    assert (name, categories, design, training) == ("shadow_rms", ["insult"], "pooled", "own")
    assert settings == EncoderSettings(
        epochs=1.0,
        batch_size=32,
        learning_rate=1e-4,
        head_learning_rate=5e-4,
        layer_decay=0.9,
        warmup=0.1,
        weight_decay=0.01,
        pair_weight=1.0,
        mean_weight=0.3,
        averaging=0.98,
        bf16=False,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": {"text": "is this bad ?"}}, "probe.text: 'is this bad ?' must contain {category}"),
        ({"probe": {"rank": 3}}, "there is no setting probe.rank; there are"),
        ({"probe": {"tokens": -1}}, "probe.tokens = -1: it must be"),
        ({"reading": {"max_tokens": 130}}, "reading: max_tokens: 130 leaves no room"),
        ({"fine_tuning": {"targets": "mean"}}, "fine_tuning: targets: bradley_terry has none"),
        ({"fine_tuning": {"limit": [1.0]}}, "fine_tuning: limit: [1.0]; give scale"),
        ({"fine_tuning": {"averaging": 1.0}}, "fine_tuning.averaging = 1.0: it must be less than 1"),
        ({"training": {"averaged_fits": 3}}, "there is no setting training.averaged_fits; there are"),
    ],
)
def test_02_refuses_what_would_not_be_read(changes, message):
    with pytest.raises(InputError) as refused:
        SECOND.parameters(changes, "here")
    assert str(refused.value).startswith(f"here: {message}") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": {"x": {"objektive": "margin"}}}, "objectives: x: there is no setting objektive; there are"),
        ({"objectives": {"x": {"objective": "hinge"}}}, "objectives: x: objective = 'hinge': it must be one of "),
        ({"objectives": {"x": {"targets": "all"}}}, "objectives: x: targets = 'all': it must be one of 'own', "),
        ({"objectives": {"x": {"limit": [8.0]}}}, "objectives: x: limit: [8.0]; give scale"),
        ({"objectives": {"x": {"averaged_fits": "3"}}}, "objectives: x: averaged_fits = '3'"),
        ({"objectives": {"x": {"epochs": -1.0}}}, "objectives: x: epochs = -1.0"),
        ({"objectives": {"x": {"epochs": 1.0, "lora_rank": 2}}}, "objectives: x: there is no setting epochs"),
        ({"objectives": {"x": {"seed": 1.0}}}, "objectives: x: {'seed': 1.0}; write settings by name"),
        ({"objectives": {"x": {"seed": True}}}, "objectives: x: {'seed': True}"),
        ({"objectives": {"oracle": {}}}, "objectives: 'oracle'"),
        ({"objectives": {"a/b": {}}}, "objectives: 'a/b'"),
        (
            {"labelled": "l", "objectives": {"x": {"epoch": 1.0}}},
            f"objectives: x: there is no setting epoch; there are {', '.join(OF_ENCODER)}",
        ),
        ({"negative": "drop"}, "negative: drop changes every objective's pairs; write keep or clip"),
        ({"refusals": ["No.", " "]}, "refusals: one of them is empty"),
        ({"demonstrations": ""}, "demonstrations: empty, and so is labelled"),
        ({"facts": ""}, "best_of: 16 answers are judged by the file in facts"),
    ],
)
def test_03_refuses_what_could_not_be_trained_or_judged(changes, message):
    with pytest.raises(InputError) as refused:
        THIRD.parameters(changes, "here")
    assert str(refused.value).startswith(f"here: {message}") and "\n" not in str(refused.value)


def test_what_either_kind_of_set_could_be_trained_with_is_let_through():
    check_objectives(MIXED | {"three": {"similarity_model": "x", "targets": "mean", "seed": 2}})
    check_objectives(MIXED, pooled=True)
    check_folders("here", ["a b", "a-b_c.d", "über 2"], ())
    assert THIRD.parameters({"negative": "drop", "objectives": {"margin": {"objective": "margin"}}}, "")
    assert THIRD.parameters({"facts": "", "best_of": 0}, "") and THIRD.parameters(
        {"demonstrations": "", "labelled": "l"}, ""
    )


def test_the_command_line_refuses_without_torch():
    code = (
        "import sys\n"
        "from srmir_lib.cli import main\n"
        "wrong = (('02', 'training.lora_rank=0'), ('02', 'probe.tokens=-1'), "
        "('03', 'objectives.pcrm.limit=[8.0]'), ('03', 'legend.pooling=first'))\n"
        "assert [main(['run', 'lab', number, '--set', text]) for number, text in wrong] == [2] * 4\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 4 and "objectives: pcrm: limit: [8.0]; give scale" in done.stderr
