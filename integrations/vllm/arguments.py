"""The arguments that a user gives to vLLM, read as far as `launch` must know them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmm.errors import InvalidArgument

TRANSFER = "--kv-transfer-config"


class Arguments:
    """``words`` as the user wrote them, but for ``--kv-transfer-config``, which is in ``transfer``."""

    def __init__(self, words: list[str]) -> None:
        self.words: list[str] = []
        self.transfer: dict[str, Any] = {}
        self._flags: list[str] = []
        self._from_file = _config_file(words)
        if (in_file := self._from_file.get(TRANSFER)) is not None:
            self.transfer = _parsed(in_file if isinstance(in_file, str) else json.dumps(in_file))
        rest = iter(words)
        for word in rest:
            self._read(word, rest)

    def _read(self, word: str, rest: Iterator[str]) -> None:
        flag, equals, value = word.partition("=")
        if not flag.startswith("-"):
            self.words.append(word)
            return
        name, *keys = _dashed(flag).split(".")  # --kv-transfer-config.kv_role kv_both
        if not _means(name, TRANSFER):
            self._flags.append(name)
            self.words.append(word)
            return
        if not equals:
            value = next(rest, "")
        if not keys:
            self.transfer = {**self.transfer, **_parsed(value)}
            return
        place = self.transfer
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = _json_or_text(value)

    def has(self, option: str) -> bool:
        """Whether the user has set it, on the command line or in the file of ``--config``."""
        return option in self._from_file or any(_means(flag, option) for flag in self._flags)

    @property
    def leading(self) -> int:
        """How many words come before the first option: the command and, if it is there, the model."""
        return next((i for i, word in enumerate(self.words) if word.startswith("-")), len(self.words))


def _dashed(flag: str) -> str:
    """As vLLM's parser does: underscores are dashes up to the first dot."""
    name, dot, keys = flag.partition(".")
    return name.replace("_", "-") + dot + keys


def _means(flag: str, option: str) -> bool:
    """argparse takes a beginning for the whole name. Shorter ones than these are ambiguous there."""
    return option == flag or (len(flag) > len("--kv-c") and option.startswith(flag))


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{TRANSFER} is {text!r}, which is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{TRANSFER} is {text!r}; expected a JSON object")
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _config_file(words: list[str]) -> dict[str, Any]:
    """What the YAML file of ``--config`` sets, by option."""
    if "--config" not in words[:-1]:
        return {}
    import yaml  # vLLM needs it, too

    path = Path(words[words.index("--config") + 1])
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidArgument(f"--config is {str(path)!r}, which cannot be read: {error}") from None
    return {_dashed(f"--{key}"): value for key, value in found.items()} if isinstance(found, dict) else {}
