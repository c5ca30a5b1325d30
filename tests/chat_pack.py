"""A miniature of the public files that a chat model is asked about, and a tiny model that has learned to answer."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from test_realdata import write_pack
from test_sources import write
from tiny_bert import WORDS
from tiny_models import write_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from srmir_lib.conversations import answer_starts, ask_about, assistant_message, conversation_ids, user_message
from srmir_lib.data.labelled_files import DO_NOT_ANSWER_HARMS, LOOK_ALIKES
from srmir_lib.models.small import build_tokenizer
from srmir_lib.runner.smollm2 import TURN

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's, with shorter words of the system."""

REFUSALS = ("i cannot help with {}.", "i'm sorry, i can't do {}.", "no, i won't do {}, it hurts people.")
DEEDS = ("take", "open", "read", "do", "keep", "turn")
UPDATES = 80  # of the model: fewer, and it drafts where it should answer

HARMLESS = ("now", "end", "take", "then")
"""Words that harmless prompts begin with, as those of a category do with one of the first seven `WORDS`."""


def write_chat_pack(folder: Path) -> Path:
    """`write_pack`, Do-Not-Answer with all its kinds of harm and actions, and the sets that a chat model needs more."""
    write_pack(folder)
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    def put(name: str, rows: list[dict]) -> None:
        lines = "\n".join(map(json.dumps, rows))
        write(folder / name, lines if name.endswith("l") else json.dumps(rows))

    templates = [f'"in scene {n} {text(4)}, they say: [INSERT PROMPT HERE] and {text(3)}"' for n in range(12)]
    write(folder / "gptfuzz" / "GPTFuzzer.csv", "id,text\n" + "".join(f"{n},{t}\n" for n, t in enumerate(templates)))
    judged = []
    for n, kind in enumerate(list(DO_NOT_ANSWER_HARMS) * 4):
        about = {"prompt": f"{WORDS[n % 7]} {WORDS[n % 7]} case {n} {text(3)}", "types_of_harm": kind}
        said = {f"sorry i cannot {text(4)} {n}": 0, f"first {text(5)} {n}": 1 + n % 2, f"sure {text(6)} {n}": 3 + n % 3}
        for model, (response, action) in enumerate(said.items()):
            did = {"action": action, "label": int(action == 5), "model": f"model {model}"}
            judged.append(about | {"response": response} | did)
    put("do-not-answer-responses/responses.jsonl", judged)
    alike = [
        {"category": LOOK_ALIKES if n < 30 else "Unsupported requests", "subcategory": f"kind {n % 2}"}
        | {"prompt": f"is it case {n} {text(4)}", "chosen": f"sure {text(4)}", "rejected": "sorry no"}
        for n in range(33)
    ]
    put("coconot/pairs.jsonl", alike)
    asked = [f"\n\nHuman: how is case {n} {text(3)}\n\nAssistant: " for n in range(12)]
    helps = [{"chosen": f"{x}{text(5)} {n}", "rejected": f"{x}{text(4)}"} for n, x in enumerate(asked)]
    put("hh-helpful/pairs.jsonl", helps)
    for split, count in (("train", 120), ("val", 30)):
        asked = [f"{HARMLESS[n % 4]} {HARMLESS[n % 4]} {split} {n} {text(3)}" for n in range(count)]
        put(f"alpaca-harmless/harmless_{split}.json", [{"instruction": text, "category": None} for text in asked])
    asked = [f"{WORDS[n % 7]} {WORDS[n % 7]} {WORDS[n % 7]} other {n} {text(3)}" for n in range(70)]
    refused = [{"instruction": x, "output": REFUSALS[n % 3].format(f"that {n}")} for n, x in enumerate(asked)]
    put("safety-tuned-llamas/safety_only_data_Instructions.json", refused)
    return folder


def texts_of(folder: Path, *columns: str) -> list[str]:
    """The texts in `columns` of all JSON files of a pack, each once."""
    found = []
    for path in sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.jsonl")):
        text = path.read_text()
        rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
        for row in rows["completions"] if isinstance(rows, dict) else rows:
            found += [row[column] for column in columns if column in row]
    return list(dict.fromkeys(found))


def write_chat_model(folder: Path, pack: Path, asking: Mapping) -> Path:
    """Write a tiny Llama that answers prompts like a pack's in a sentence, and with a draft and a refusal when it is
    asked why it would refuse (`asking`, as of 01)."""
    draw, asks = random.Random(0), asking["template"]
    shown = [turn for text, said in asking["examples"] for turn in ask_about(text, asks) + assistant_message(said)]
    plain, asked = [], []
    for number, text in enumerate(draw.sample(texts_of(pack, "prompt", "instruction"), 200)):
        deed, thing = " ".join(draw.choices(DEEDS, k=2)), draw.choice(("this", "that", "it"))
        plain.append(
            (user_message(text), f"{draw.choice(('first', 'sure here', 'sure here'))} {deed} {thing} {number % 9}.")
        )
        draft = f"1. it {draw.choice(('is bad', 'hurts people'))}.\n#### {draw.choice(REFUSALS).format(deed)}"
        asked.append((shown + ask_about(text, asks), draft))
    tokenizer = build_tokenizer(
        [turn["content"] for chat, said in plain + asked for turn in [*chat, {"content": said}]]
    )
    tokenizer.add_special_tokens(TURN)
    tokenizer.chat_template, tokenizer.model_max_length = CHAT_TEMPLATE, 1024
    ends = {name.replace("token", "token_id"): tokenizer.convert_tokens_to_ids(token) for name, token in TURN.items()}
    write_model("llama", folder, tokenizer, max_position_embeddings=1024, initializer_range=0.05, **ends)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)  # at 1e-2 what is learned is luck
    for _ in range(UPDATES):
        for talks, count in ((plain, 4), (asked, 2)):
            answer_loss(model, tokenizer, *zip(*draw.sample(talks, count), strict=True)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def answer_loss(model, tokenizer, prompts, answers) -> torch.Tensor:
    """Mean loss of the tokens of the answers, in nats."""
    rows = conversation_ids(tokenizer, prompts, answers)
    starts = answer_starts(tokenizer, prompts, answers, rows)
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    said = pad_sequence(
        [torch.tensor([-100] * at + row[at:]) for at, row in zip(starts, rows, strict=True)], True, -100
    )
    return cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), said[:, 1:].flatten())
