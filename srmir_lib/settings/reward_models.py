"""What the training of reward models is told (02), and what makes margins and trains them again (03)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import model_validator

from srmir_lib.settings.base import PROCESSES, Device, NotebookSettings, Settings, told
from srmir_lib.settings.reward_training import (
    EncoderSettings,
    Objective,
    ProbeSettings,
    RewardSettings,
    Targets,
    check_objectives,
    check_reading,
)
from srmir_lib.taxonomy import ALL

LAB_NAMES = {
    "insult": "insult",
    "unfairness": "unfairness",
    "crimes": "crime",
    "physical_harm": "injury",
    "mental_health": "distress",
    "privacy": "privacy",
    "ethics": "morals",
}


class RewardTraining(Settings):
    """How each reward model of a trunk is trained."""

    batch_size: int = told("preference pairs an update", 8, gt=0)
    single_learning_rate: float = told("of the single model, at the first update", 5e-5, gt=0)
    lora_rank: int = told("rank of each adapter", 4, gt=0)
    lora_alpha: int = told("adapters are scaled by lora_alpha / lora_rank", 8, gt=0)
    center_rewards_coefficient: float = told("pulls the two scores of a pair towards a sum of zero", 0.0, ge=0)
    averaged_fits: int = told("fits in different orders of the pairs whose weights are averaged (WARM)", 1, gt=0)
    length_calibration: bool = told("take off what a model pays for an answer's length alone", False)
    max_length: int = told("longest conversation in tokens; a longer pair is an error", 192, gt=0)
    unknown_ratio: float = told("pairs of no category that each model sees, per pair of its own", 0.5, ge=0)
    cross_ratio: float = told("cross-category training: pairs of other categories, per pair of its own", 1.0, ge=0)
    keep_gb: float = told("memory for what the trunk has read, gigabytes; the rest is read again", 1.5, ge=0)


class Probe(Settings):
    """What is asked on a shared trunk."""

    text: str = told("what it asks", "<|user|>is this wrong : {category} ?<|end|><|assistant|>")
    names: dict[str, str] = told(
        "what the base model calls the categories; one that is missing keeps the name it has in the figures", LAB_NAMES
    )
    tokens: int = told("m: the most that a question may have, never cut; 0: as many as the longest has", 9, ge=0)

    @model_validator(mode="after")
    def _names_the_category(self):
        if "{category}" not in self.text:
            raise ValueError(f"text: {self.text!r} must contain {{category}}, or all models ask the same")
        return self


class Probes(Probe):
    """That of the seven, and that of the single model."""

    single_text: str = told("what the single model's asks", "<|user|>is this wrong ?<|end|><|assistant|>")


class Reading(Settings):
    """How a pair becomes an encoder's tokens."""

    max_tokens: int = told("of prompt and answer together; long ones keep head and tail", 384, gt=0)
    prompt_tokens: int = told("of the prompt", 128, gt=0)

    @model_validator(mode="after")
    def _leaves_room(self):
        check_reading(self.max_tokens, self.prompt_tokens)
        return self


class FineTuning(Settings):
    """How an encoder is fine-tuned."""

    epochs: float = told("passes over labelled responses and pairs together", 3.0, gt=0)
    batch_size: int = told("examples an update; a pair is one example", 32, gt=0)
    learning_rate: float = told("of the top layer", 1e-4, gt=0)
    head_learning_rate: float = told("of the new outputs", 5e-4, gt=0)
    layer_decay: float = told("each layer below the top learns this much slower than the one above it", 0.9, ge=0, le=1)
    warmup: float = told("share of the updates over which the learning rate rises", 0.1, ge=0, le=1)
    weight_decay: float = told("AdamW's", 0.01, ge=0)
    pair_weight: float = told("of a preference pair next to a labelled response", 1.0, ge=0)
    mean_weight: float = told("of the loss on the mean of all outputs, next to that on the routed one", 0.3, ge=0)
    averaging: float = told("decay of the running average of the weights that is kept; 0: the last", 0.98, ge=0, lt=1)
    bf16: bool = told("bfloat16 matrix products; faster where the processor has them", False)
    objective: Objective = told("what is asked of the gap between a pair's scores", "bradley_terry")
    limit: list[float] = told("pcrm_…: scale, offset, shift; empty: the authors'", [])
    limit_cap: float = told("pcrm_…: the largest limit", 30.0, gt=0)
    targets: Targets = told("whose margin or limit a pair gets", "own")
    similarity_model: str = told("pcrm_cosine: a frozen encoder; empty: the base model", "")
    center_rewards_coefficient: float = told("pulls the two scores of a pair towards a sum of zero", 0.0, ge=0)

    @model_validator(mode="after")
    def _agrees(self):
        self.encoder()
        return self

    def encoder(self) -> EncoderSettings:
        """All that `fit_pooled` is told."""
        return EncoderSettings(**dict(self))


class ShadowSettings(NotebookSettings):
    """Notebook 02."""

    base_model: str = told("folder or hub id of a causal language model or encoder; empty: the one 01 wrote")
    design: Literal["shared", "separate", "pooled"] = told("one trunk and probes, LoRA models, or one encoder")
    objective: Objective = told("what is asked of the gap between a pair's scores")
    max_steps: int = told("updates of each of the seven; the single model gets as many as they together", gt=0)
    learning_rate: float = told("of the seven, at the first update; falls linearly to zero", gt=0)
    labelled: str = told(
        "folder in 01_data of responses that people labelled, which train design pooled alone; empty: none"
    )
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    show_text: bool = told("false: only the beginning of each text, for real data")
    num_processes: int = told(PROCESSES, gt=0)
    training: RewardTraining = told("how a model is trained", RewardTraining())
    probe: Probes = told("design shared: what is asked", Probes())
    reading: Reading = told("design pooled: how a pair becomes tokens", Reading())
    fine_tuning: FineTuning = told("design pooled: how the encoder is trained", FineTuning())

    @model_validator(mode="after")
    def _is_read(self):
        """Refuse what the design would not read."""
        if self.num_processes > 1 and self.design != "separate":
            raise ValueError(f"num_processes: design {self.design} trains in one process; write 1, or design: separate")
        if self.training.batch_size % self.num_processes:
            raise ValueError(f"num_processes: {self.num_processes} must divide batch_size = {self.training.batch_size}")
        if self.design != "pooled":
            return self
        elsewhere = "an encoder's stands in fine_tuning"
        unread = {
            "objective": (self.objective, "bradley_terry", elsewhere),
            "training.center_rewards_coefficient": (self.training.center_rewards_coefficient, 0.0, elsewhere),
            "training.averaged_fits": (self.training.averaged_fits, 1, "an encoder's fits are not averaged"),
        }
        for name, (value, usual, fix) in unread.items():
            if value != usual:
                raise ValueError(f"{name}: {value!r} is not read with design pooled; {fix}")
        return self

    def sets(self, categories: Sequence[str]) -> dict[str, tuple]:
        """Name -> (categories, settings, design, which pairs a model sees) of every set that is trained."""
        if self.design == "pooled":
            return {"shadow_rms": (categories, self.fine_tuning.encoder(), "pooled", "own")}
        seven = self._of_trunk()
        alone = replace(seven.probe, text=self.probe.single_text)
        as_many = {"max_steps": self.max_steps * len(categories)}  # updates as the seven have together
        single = replace(seven, **as_many, learning_rate=self.training.single_learning_rate, probe=alone)
        return {
            "shadow_rms": (categories, seven, self.design, "own"),
            "single_rm": ([ALL], single, self.design, "own"),
            "cross_rms": (categories, seven, self.design, "cross"),
        }

    def _of_trunk(self) -> RewardSettings:
        """What each of the seven is told."""
        given = {name: getattr(self, name) for name in ("objective", "max_steps", "learning_rate")}
        other = dict(self.training)
        del other["single_learning_rate"], other["length_calibration"]
        probe = ProbeSettings(**{name: getattr(self.probe, name) for name in Probe.model_fields})
        return RewardSettings(**given, **other, probe=probe)


class LegendSettings(Settings):
    """How margins are read off hidden states (Feng et al. 2024)."""

    layer: int = told("hidden state that serves as embedding: 0 is the token embedding, -1 the last", -1)
    pooling: Literal["last", "mean"] = told("the conversation's last token, or the mean over the answer's", "last")
    pairs: int = told("prompts with a refusal due that the safety direction is estimated from, at most", 400, gt=0)
    size: float = told("the scaled margins are multiplied by this", 1.0, gt=0)


class MarginSettings(NotebookSettings):
    """Notebook 03."""

    base_model: str = told("model whose hidden states are read and which is trained; empty: the one 01 wrote")
    demonstrations: str = told("folder of 01_data that says which prompts are refused; empty: see labelled")
    labelled: str = told("folder in 01_data of responses that people labelled (pooled models); empty: none")
    judged: str = told("folder in 01_data of pairs whose answers people judged, for evaluation only; empty: none")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    refusals: list[str] = told("safe answers for the direction", min_length=1)
    scale: Literal["none", "unit", "binned"] = told("hidden-state units, root mean square 1, or 0, 1/3, 2/3, 1")
    negative: Literal["keep", "clip", "drop", "flip"] = told("what becomes of margins below zero")
    objectives: dict[str, dict] = told("reward models to train again: name -> what differs from 02")
    facts: str = told("file of 01_data with the truth about the town, for evaluation only; empty: unknown")
    best_of: int = told("answers a prompt that the models choose among; 0: none", ge=0)
    max_prompts: int = told("prompts that are answered so often", gt=0)
    legend: LegendSettings = told("how margins are made", LegendSettings())

    @model_validator(mode="after")
    def _agrees(self):
        if not all(text.strip() for text in self.refusals):
            raise ValueError("refusals: one of them is empty; a refusal needs a word, leave it out")
        if not (self.demonstrations or self.labelled):
            raise ValueError("demonstrations: empty, and so is labelled; name the folder that says what is refused")
        if self.best_of and not self.facts:
            raise ValueError(f"best_of: {self.best_of} answers are judged by the file in facts; name one, or write 0")
        check_objectives(self.objectives, bool(self.labelled))
        targets = {own.get("objective") for own in self.objectives.values()}
        if self.negative in ("drop", "flip") and not targets <= {"margin"}:
            raise ValueError(f"negative: {self.negative} changes every objective's pairs; write keep or clip")
        return self
