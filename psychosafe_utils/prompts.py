"""System prompts as versioned text files, and chats rendered by a model's own template."""

from __future__ import annotations

import re
from pathlib import Path

from psychosafe_utils.config import RISK_CLUSTERS, ConfigError, nearest_name
from psychosafe_utils.helplines import contact_text, find_helpline

FOLDER = Path(__file__).parent / "system_prompts"
RESOURCE_ROLES = ("self", "may_harm", "survivor", "minor_concern")


def prompt_versions() -> dict[str, Path]:
    """The newest version of every system prompt, by name."""
    newest = {}
    for path in sorted(FOLDER.glob("*.txt"), key=lambda p: int(re.search(r"\.v(\d+)$", p.stem)[1])):
        newest[path.stem.split(".")[0]] = path
    return newest


def resource_lines(regions: tuple[str, ...] = ("US", "GB")) -> str:
    """One line a risk cluster with the registry's verified services of `regions`, for use inside a system prompt."""
    lines = []
    for cluster in RISK_CLUSTERS:
        found = {}
        for region in regions:
            for role in RESOURCE_ROLES:
                service = find_helpline(cluster, role, region)
                if service is not None:
                    found.setdefault(contact_text(service) + (f", {service.scope}" if service.scope else ""), region)
        services = [f"{region} {contact}" for contact, region in found.items()] or ["findahelpline.com"]
        lines.append(f"{cluster.replace('_', ' ')}: {'; '.join(services)}")
    return "\n".join([*lines, "elsewhere: findahelpline.com; danger now: the emergency number"])


def short_resources() -> str:
    """The one line of services that fits a small model's attention."""
    crisis = [f"{r} {contact_text(find_helpline('suicide_self_harm', 'self', r))}" for r in ("US", "GB")]
    return "; ".join([*crisis, "any country findahelpline.com"])


def load_system_prompt(name: str) -> str:
    """Text of the newest version of a system prompt, with the registry's services filled in.

    Raises:
        ConfigError: When there is no system prompt of that name.
    """
    versions = prompt_versions()
    if name not in versions:
        raise ConfigError(f"unknown system prompt '{name}'{nearest_name(name, versions)}")
    text = versions[name].read_text(encoding="utf-8").strip()
    return text.replace("{resources}", short_resources() if name.endswith("compact") else resource_lines())


def render_chat(tokenizer, user_text: str, system_prompt: str) -> str:
    """A chat up to where the assistant begins, by the model's own template (thinking off where it has that switch)."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": user_text})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
