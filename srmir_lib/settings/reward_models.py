"""What the training of reward models is told (02), and what makes margins and trains them again (03)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from srmir_lib.settings.base import PROCESSES, Device, NotebookSettings, Settings, told
from srmir_lib.settings.reward_training import (
    EncoderSettings,
    Probe,
    Reading,
    RewardSettings,
    SizedProbe,
    TrunkTraining,
    check_objectives,
    names_the_category,
)
from srmir_lib.taxonomy import ALL

IN_THE_LAB = {
    "text": "<|user|>is this wrong : {category} ?<|end|><|assistant|>",
    "names": {
        "insult": "insult",
        "unfairness": "unfairness",
        "crimes": "crime",
        "physical_harm": "injury",
        "mental_health": "distress",
        "privacy": "privacy",
        "ethics": "morals",
    },
    "tokens": 9,
}
"""A probe in words that the lab's base model was taught."""


class RewardTraining(TrunkTraining):
    """How each reward model of a trunk is trained."""

    single_learning_rate: float = told("of the single model and of LoRA rivals, at the first update", 5e-5, gt=0)
    unknown_ratio: float = told("pairs of no category that each model sees, per pair of its own", 0.5, ge=0)
    cross_ratio: float = told("cross-category training: pairs of other categories, per pair of its own", 1.0, ge=0)


class Probes(Probe):
    """What the seven ask on a shared trunk, and what the single model asks."""

    single_text: str = told("what the single model's asks", "<|user|>is this wrong ?<|end|><|assistant|>")


class ShadowSettings(NotebookSettings):
    """Notebook 02."""

    base_model: str = told("folder or hub id of a causal language model or encoder; empty: the one 01 wrote")
    design: Literal["shared", "separate", "pooled"] = told("one trunk and probes, LoRA models, or one encoder")
    max_steps: int = told("updates of each of the seven; the single model gets as many as they together", gt=0)
    learning_rate: float = told("of the seven, at the first update; falls linearly to zero", gt=0)
    pairs: str = told("folder in 01_data of the pairs that are learned from", min_length=1)
    swapped: float = told("share of the training pairs that are reversed; half: labels that say nothing", ge=0, le=1)
    labelled: str = told(
        "folder in 01_data of responses that people labelled, which train design pooled alone; empty: none"
    )
    lora: list[str] = told("design shared: categories of which a LoRA model learns as well, its probe's rival")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    show_text: bool = told("false: only the beginning of each text, for real data")
    num_processes: int = told(PROCESSES, gt=0)
    training: RewardTraining = told("how a model is trained", RewardTraining())
    probe: Probes = told("design shared: what is asked", Probes(**IN_THE_LAB))
    reading: Reading = told("design pooled: how a pair becomes tokens", Reading(max_tokens=384, prompt_tokens=128))
    fine_tuning: EncoderSettings = told("design pooled: how the encoder is trained", EncoderSettings())

    @model_validator(mode="after")
    def _is_read(self):
        """Refuse what the design would not read."""
        names_the_category(self.probe)
        if self.num_processes > 1 and self.design != "separate":
            raise ValueError(f"num_processes: design {self.design} trains in one process; write 1, or design: separate")
        if self.swapped and self.design == "pooled":
            raise ValueError("swapped: design pooled learns from labelled responses as well; write 0")
        if self.lora and self.design != "shared":
            raise ValueError(f"lora: rivals of probes, and design {self.design} has none; write [], or design: shared")
        if len({*self.lora}) < len(self.lora):
            raise ValueError("lora: a category twice; name each once")
        if self.training.batch_size % self.num_processes:
            raise ValueError(f"num_processes: {self.num_processes} must divide batch_size = {self.training.batch_size}")
        return self

    def sets(self, categories: Sequence[str]) -> dict[str, tuple]:
        """Name -> (categories, settings, design, which pairs a model sees) of every set that is trained."""
        if self.design == "pooled":
            return {"shadow_rms": (categories, self.fine_tuning, "pooled", "own")}
        seven, alone = self._of_trunk(), self.rival().changed(probe={"text": self.probe.single_text})
        single = alone.changed(max_steps=self.max_steps * len(categories))  # updates as the seven together
        return {
            "shadow_rms": (categories, seven, self.design, "own"),
            "single_rm": ([ALL], single, self.design, "own"),
            "cross_rms": (categories, seven, self.design, "cross"),
        }

    def rival(self) -> RewardSettings:
        """What a LoRA rival of one of the seven is told: as many updates, the learning rate of a model on its own."""
        return self._of_trunk().changed(learning_rate=self.training.single_learning_rate)

    def _of_trunk(self) -> RewardSettings:
        """What each of the seven is told."""
        own = {"max_steps": self.max_steps, "learning_rate": self.learning_rate}
        return RewardSettings.of(self.training, **own, probe=SizedProbe.of(self.probe))


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
