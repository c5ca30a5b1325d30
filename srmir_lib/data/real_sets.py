"""What 01 writes where there is no town: public files, what a chat model says of them, or a person's own pairs."""

from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict

from srmir_lib.conversations import text_of
from srmir_lib.data.chat_data import ChatData
from srmir_lib.data.chat_sets import chat_sets
from srmir_lib.data.harm_classifier import HarmClassifier, fit_harm_classifier
from srmir_lib.data.own_sets import own_data
from srmir_lib.data.public_sets import public_data
from srmir_lib.data.router import Router
from srmir_lib.settings.data import DataSettings


@dataclass(frozen=True)
class RealData:
    """The `folders` by name, the `router`, `numbers` by group and name; with a chat model also what it `said` of the
    training prompts, and the classifier of `harm` that becomes a referee."""

    folders: dict[str, DatasetDict]
    router: Router
    numbers: dict[str, dict[str, float]]
    said: ChatData | None = None
    harm: HarmClassifier | None = None


def real_sets(settings: DataSettings, model: str, pairs: Path, keep_in: Path | None = None) -> RealData:
    """All of it, as `prompt_source` says. `model`: the chat model's id or folder, else the encoder's; `pairs`: a
    person's own, where they are read; `keep_in`: a folder for what a chat model says, so that it is asked once."""
    seed, device = settings.seed, settings.device
    if settings.prompt_source == "own":
        return RealData(*own_data(pairs, model, seed, device))
    if settings.prompt_source == "xsafety":
        return RealData(*public_data(settings.data_dir, model, seed, device))
    folders, router, numbers, said = chat_sets(model, settings, device, keep_in)
    harm, test = fit_harm_classifier(settings.data_dir, settings.encoder, device, seed), folders["labelled"]["test"]
    numbers["referee"] = harm.against(list(map(text_of, test["prompt"])), test["completion"], test["unsafe"])
    return RealData(folders, router, numbers, said, harm)
