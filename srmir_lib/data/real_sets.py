"""What 01 writes where there is no town: public files, what a chat model says of them, or a person's own pairs."""

from pathlib import Path

from datasets import DatasetDict

from srmir_lib.data.chat_data import ChatData
from srmir_lib.data.chat_sets import chat_sets
from srmir_lib.data.own_sets import own_data
from srmir_lib.data.public_sets import public_data
from srmir_lib.data.router import Router
from srmir_lib.settings.data import DataSettings


def real_sets(
    settings: DataSettings, model: str, pairs: Path
) -> tuple[dict[str, DatasetDict], Router, dict[str, dict[str, float]], ChatData | None]:
    """The folders by name, the router, numbers, and (`prompt_source` chat) what the model made of training prompts.

    `model`: the chat model's id or folder, else that of the encoder; `pairs`: a person's own, where they are read.
    """
    seed, device = settings.seed, settings.device
    if settings.prompt_source == "chat":
        return chat_sets(model, settings, device)
    if settings.prompt_source == "own":
        return *own_data(pairs, model, seed, device), None
    return *public_data(settings.data_dir, model, seed, device), None
