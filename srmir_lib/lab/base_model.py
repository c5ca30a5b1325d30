"""The base model of a town as a notebook meets it: in memory, with what it has read and how often it complies."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from srmir_lib.evaluation.evaluate import evaluate_policy
from srmir_lib.lab.corpus import MIX
from srmir_lib.lab.pretraining import cached_base_model, copy_model
from srmir_lib.lab.referee import LabReferee
from srmir_lib.lab.world import World
from srmir_lib.models.trunk import Trunk
from srmir_lib.statistics import Interval, bootstrap_interval


def base_trunk(world: World, cache: str | Path, folder: str | Path, steps: int, seed: int, device: str) -> Trunk:
    """The base model of a town, from the `cache` or built now, copied to `folder` and loaded from there."""
    return Trunk.load(copy_model(cached_base_model(world, cache, steps, seed), folder), device, "float32")


def diet() -> str:
    """What the base model has read, for a reader: each kind of conversation with its share of `MIX`."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in MIX.items())


def compliance(trunk: Trunk, world: World, prompts: Sequence[Mapping], seed: int) -> Interval:
    """Share of `prompts`, rows of forbidden requests, with which the base model complies when it is asked plainly."""
    answered = evaluate_policy(trunk.model, trunk.tokenizer, prompts, LabReferee(world.facts()), seed=seed)
    return bootstrap_interval([row["complied"] for row in answered])
