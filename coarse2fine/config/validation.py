"""From YAML values to a validated pydantic model, with messages that name file, line, key, value and remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from coarse2fine.config.yaml import Keys, Origin, YamlTree, dotted, parse_yaml
from coarse2fine.errors import ConfigError

__all__ = ["ConflictError", "Expected", "ModelReader", "NameOrPath", "did_you_mean", "section_of"]

M = TypeVar("M", bound=BaseModel)

_UNIONS = (Union, UnionType)


class Expected(NamedTuple):
    """What a message says that a value should have been; belongs into the ``Annotated`` type of a field."""

    text: str


class NameOrPath(NamedTuple):
    """Marks a text that is a name or else a path; belongs into the ``Annotated`` type of a field."""

    is_name: Callable[[str, Path], bool]
    """Tells which, for a text and the folder that a relative path starts from."""


class ConflictError(ValueError):
    """Values that are valid alone but not together, each with the key to change; raised by a model's validator."""

    def __init__(self, conflicts: Sequence[tuple[Keys, str]]) -> None:
        self.conflicts = list(conflicts)
        super().__init__("; ".join(f"{dotted(keys)}: {message}" for keys, message in conflicts))


class ModelReader(Generic[M]):
    """Applies overrides to the values of a YAML file and validates them as a model.

    Args:
        model: The model; its sections are models themselves.
        tree: What was read from the file.
        renamed: Names that users may know from elsewhere, and the dotted keys that replace them.
        remedy: Says where all keys are explained.
    """

    def __init__(
        self,
        model: type[M],
        tree: YamlTree,
        renamed: Mapping[str, str],
        remedy: str,
    ) -> None:
        self._model, self._remedy = model, remedy
        self._tree = tree
        self._renamed = renamed
        if tree.root is not None and not isinstance(tree.root, dict):
            tree.report(tree.origin(()), "expected sections of keys at the top level, not a list or a single value")
        self._root: dict[str, Any] = tree.root if isinstance(tree.root, dict) else {}

    def override(self, text: str, origin: Origin) -> None:
        """Sets one key from a text such as ``a.b=[1, 2]``; paths are relative to the current folder."""
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            self._tree.report(origin, "expected key=value")
            return
        keys: list[str] = []
        field: FieldInfo | None = None
        for part in name.strip().split("."):
            fields = _fields(self._section(keys))
            if part not in fields:
                self._tree.report(origin, self._unknown(tuple(keys), part))
                return
            canonical, field = fields[part]
            keys.append(canonical)
        section = self._section(keys)
        if section and field and NoneType not in _members(field.annotation):
            self._tree.report(origin, f"'{name}' is a section; set one of its keys: {_listed(section)}")
            return
        given = parse_yaml(value, lambda line: origin, tuple(keys))
        if field and _is_path(field, given.root):
            given.root = _in_current_folder(given.root)
        self._put(tuple(keys), given)

    def _put(self, keys: tuple[str, ...], given: YamlTree) -> None:
        """Places an override's value, unless it could not be read, over the file's."""
        self._tree.problems += given.problems
        values = self._root
        for key in keys[:-1]:
            if values.get(key) is None:
                values[key] = {}
            values = values[key]
            if not isinstance(values, dict):  # the file's own mistake, which validation reports
                return
        if given.problems:
            return
        for alias, (canonical, _) in _fields(self._section(keys[:-1])).items():
            if canonical == keys[-1]:
                values.pop(alias, None)
        values[keys[-1]] = given.root
        origins = self._tree.origins
        kept = {known: origin for known, origin in origins.items() if known[: len(keys)] != keys}
        origins.clear()
        origins.update(kept | given.origins)

    def validate(self, base: Path) -> M:
        """Builds the model.

        Args:
            base: The folder that the file's paths are relative to.

        Raises:
            ConfigError: With every problem of the file and of the overrides, one per line.
        """
        model: M | None = None
        try:
            model = self._model.model_validate(self._root, context={"base": base})
        except ValidationError as error:
            self._explain(error)
        if model is None or self._tree.problems:
            lines = [text for _, text in sorted(self._tree.problems)]
            raise ConfigError("\n".join(lines), self._remedy)
        return model

    def _explain(self, error: ValidationError) -> None:
        """Reports pydantic's errors, one per field: a union alone would give one for each of its members."""
        seen: set[Keys] = set()
        for detail in error.errors(include_url=False):
            location, cause = detail["loc"], detail.get("ctx", {}).get("error")
            if isinstance(cause, ConflictError):
                for keys, message in cause.conflicts:
                    self._tree.report(self._tree.origin(keys), f"{dotted(keys)}: {message}")
            elif detail["type"] == "extra_forbidden":
                self._tree.report(self._tree.origin(location), self._unknown(location[:-1], str(location[-1])))
            elif detail["type"] == "missing" and isinstance(location[-1], str):  # not a part of a list
                self._tree.report(self._tree.origin(location[:-1]), f"{dotted(location)} is missing")
            else:
                keys, expected = self._field_at(location)
                if keys not in seen:
                    message = f"{dotted(keys)}: found {self._found(keys)}; expected {expected}"
                    self._tree.report(self._tree.origin(keys), message)
                seen.add(keys)

    def _field_at(self, location: Keys) -> tuple[Keys, str]:
        """The keys of the field that an error lies in, and what the field expects."""
        keys: list[str | int] = []
        expected = ""
        for key in location:
            fields = _fields(self._section(keys))
            if key not in fields:
                break
            _, field = fields[str(key)]
            keys.append(key)
            expected = _expected(field.annotation, field.metadata)
        return tuple(keys), expected

    def _found(self, keys: Keys) -> str:
        value: Any = self._root
        for key in keys:
            value = value[key]
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."

    def _section(self, keys: Iterable[str | int]) -> type[BaseModel] | None:
        """The model at a path of keys; None if a plain value is there."""
        model: type[BaseModel] | None = self._model
        for key in keys:
            model = section_of(_fields(model)[str(key)][1])
        return model

    def _unknown(self, keys: Keys, name: str) -> str:
        """Says that a section has no such key, and which key was probably meant."""
        section = self._section(keys)
        if section is None:
            return f"unknown key '{dotted((*keys, name))}': '{dotted(keys)}' is a single value"
        if name in _fields(section):
            return f"{dotted(keys)}: '{name}' and '{_fields(section)[name][0]}' are the same key; give one"
        elsewhere = [path for path in _all_keys(self._model) if path.rpartition(".")[2] == name]
        if name in self._renamed:
            hint = f"; it is called '{self._renamed[name]}' here."
        elif elsewhere:
            hint = f"; did you mean {' or '.join(repr(path) for path in elsewhere)}?"
        else:
            similar = did_you_mean(name, [canonical for canonical, _ in _fields(section).values()])
            hint = f"; {similar}" if similar else "."
        where = f"of '{dotted(keys)}'" if keys else "at the top level"
        return f"unknown key '{dotted((*keys, name))}'{hint} Keys {where}: {_listed(section)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the most similar known name; empty if nothing is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model that a field holds, if it holds one."""
    models = (part for part in _members(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel))
    return next(models, None)


def _is_path(field: FieldInfo, value: object) -> bool:
    """Whether a value of a field is the path of something."""
    marks = [mark for mark in field.metadata if isinstance(mark, NameOrPath)]
    if marks and isinstance(value, str):
        return not any(mark.is_name(value, Path.cwd()) for mark in marks)
    return Path in _members(field.annotation)


def _in_current_folder(path: object) -> object:
    """A relative path as an absolute one, so that it is not taken relative to the file."""
    if isinstance(path, str) and path[:1] not in ("", "~"):
        return str(Path.cwd() / path)
    return path


def _fields(model: type[BaseModel] | None) -> dict[str, tuple[str, FieldInfo]]:
    """Each name that a model's files may use for a field: the name to show, and the field."""
    names: dict[str, tuple[str, FieldInfo]] = {}
    for name, field in model.model_fields.items() if model else ():
        shown = field.serialization_alias or name
        aliases = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else ()
        for known in (shown, name, *(alias for alias in aliases if isinstance(alias, str))):
            names[known] = (shown, field)
    return names


def _listed(model: type[BaseModel]) -> str:
    return ", ".join(dict.fromkeys(shown for shown, _ in _fields(model).values()))


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = prefix + (field.serialization_alias or name)
        yield path
        section = section_of(field)
        if section:
            yield from _all_keys(section, path + ".")


def _members(annotation: Any) -> Iterator[Any]:
    """The types that a field's annotation unites, without their constraints."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in _UNIONS:
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What values an annotation allows, in words."""
    for item in metadata:
        if isinstance(item, Expected):
            return item.text
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _expected(parts[0], parts[1:])
    if origin in _UNIONS:
        return ", or ".join(_expected(part) for part in parts)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with the keys {_listed(annotation)}"
    return {NoneType: "null", bool: "true or false"}.get(annotation, str(annotation))
