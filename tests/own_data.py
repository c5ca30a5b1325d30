"""Preference rows as people have them, in four forms, and a repository root of their own."""

import json
import shutil
from pathlib import Path

from srmir_lib.conversations import assistant_message, user_message

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("conversations with a system turn", "plain texts", "four categories, two of them new", "implicit prompts")
NAMES = {form: ("insult", "privacy") for form in FORMS} | {FORMS[2]: ("insult", "privacy", "spam", "tone of voice")}


def own_rows(form: str, prompts: int = 10) -> list[dict]:
    """So many pairs of each category, a prompt each."""
    rows = []
    for name in NAMES[form]:
        for n in range(prompts):
            asked, no, yes = f"tell me about {name} {n}", f"I can not, {n}", f"first get ready, then check {n}"
            system = {"role": "system", "content": "be brief"}
            plain = {"prompt": asked, "chosen": no, "rejected": yes}
            turns = [system, *user_message(asked)]
            rows.append(
                {
                    FORMS[0]: {
                        "prompt": turns,
                        "chosen": assistant_message(no),
                        "rejected": assistant_message(yes),
                    },
                    FORMS[3]: {
                        "chosen": user_message(asked) + assistant_message(no),
                        "rejected": user_message(asked) + assistant_message(yes),
                    },
                }.get(form, plain)
                | {"category": name}
            )
    return rows


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
    return path


def own_root(folder: Path) -> Path:
    """A repository root with the notebooks and the library, and no presets."""
    (folder / "params").mkdir(parents=True)
    for name in ("notebooks", "srmir_lib"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder
