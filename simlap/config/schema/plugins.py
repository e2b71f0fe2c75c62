"""Kinds of gates and methods that other packages bring along, found by their entry points (docs/plugins.md).

An entry point names the kind and the class of its settings, a subclass of `GatePlugin` or `MethodPlugin`. The settings name the
code that does the work, which is imported when something is built from them: planning needs the settings alone, and no torch.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from simlap.config.explain import explain
from simlap.config.schema.base import Strict
from simlap.errors import ConfigError


class Plugin(Strict):
    """Settings that a package outside of simlap brings along."""

    group: ClassVar[str]
    """Of its entry points."""
    implementation: ClassVar[str]
    """What these are the settings of, as `package.module:Class`. It is imported when something is built."""
    kind: str
    """Narrowed by every subclass to `Literal[...]` of its entry point's name."""


class GatePlugin(Plugin):
    """Settings of a gate. Its implementation is a `simlap.nn.FeatureFilter`, constructed with
    `(settings, num_classes=C, embed_dim=D)`."""

    group: ClassVar[str] = "simlap.gates"


class MethodPlugin(Plugin):
    """Settings of a method. Its implementation is a `simlap.methods.Method`, constructed as that is."""

    group: ClassVar[str] = "simlap.methods"

    @property
    def pair_kind(self) -> Literal["arbitrary", "identical", "distinct"]:
        """How the batches' pair labels are drawn; override where the method looks at them."""
        return "identical"

    @property
    def has_gates(self) -> bool:
        """Whether the method's `gates` are a filter; override where they are."""
        return False


@dataclass(frozen=True)
class Origin:
    """Where a plug-in comes from."""

    distribution: str
    version: str
    entry_point: str
    """As its package declares it."""

    @property
    def release(self) -> str:
        """What of it is part of a run's identity."""
        return f"{self.distribution} {self.version}"

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point})"


class Pluggable:
    """Makes a union of built-in kinds and of a base of plug-ins, its last member, one that is told apart by `kind`.

    Plug-ins are looked for when their kind is asked for: one that is broken stops nobody else.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        *builtin, base = get_args(source)
        known = {kind for model in builtin for kind in get_args(model.model_fields["kind"].annotation)}
        inner = handler.generate_schema(Annotated[Union[tuple(builtin)], Field(discriminator="kind")])  # noqa: UP007

        def validate(value: Any, inner: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
            if isinstance(value, base):
                return value
            kind = value.get("kind") if isinstance(value, Mapping) else None
            if not isinstance(kind, str):
                return inner(value)
            found = _entry_points(base.group).get(kind, ())
            if kind in known:
                if found:
                    raise _unusable(
                        "kind", kind, f"is a kind of simlap's own, and of {_named(found)} too: remove one of them"
                    )
                return inner(value)
            if not found:
                choices = [*(kind for model in builtin for kind in get_args(model.model_fields["kind"].annotation))]
                raise _unusable("kind", kind, "not a valid kind", [*choices, *_entry_points(base.group)])
            try:
                model = _settings(base, kind)
            except ConfigError as error:
                raise _unusable("kind", kind, error.message) from error
            try:
                return (
                    model.model_validate_json(json.dumps(value)) if info.mode == "json" else model.model_validate(value)
                )
            except ValidationError as error:
                wrong = explain(model, error, file=None, prefix="")
                raise _unusable(wrong.key or "kind", wrong.value, wrong.message, wrong.choices) from error

        # whatever is there is written as what it is, which a union cannot do with a kind that it does not know
        return core_schema.with_info_wrap_validator_function(
            validate, inner, serialization=core_schema.simple_ser_schema("any")
        )


def plugins_in(model: BaseModel, path: str) -> dict[str, Plugin]:
    """The plug-ins among these settings, by their dotted path; the outer ones first. `path`: of the settings themselves."""
    return dict(_inside(model, path))


def origin_of(plugin: Plugin) -> Origin:
    """The package that brings it along. Raises ConfigError where no entry point leads to its class."""
    found = _entry_points(plugin.group).get(plugin.kind, ())
    if len(found) != 1 or _settings(_base(plugin), plugin.kind) is not type(plugin):
        raise ConfigError(
            f"no entry point of the group {plugin.group} leads to {_path(type(plugin))}", value=plugin.kind
        )
    return _origin(found[0])


def implementation_of(plugin: Plugin, base: type) -> Any:
    """The class that does the work. Raises ConfigError where it cannot be imported, or is no `base`."""
    try:
        module, _, name = plugin.implementation.partition(":")
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # somebody else's module may raise anything
        raise _broken(plugin, f"cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise _broken(plugin, f"is no subclass of {_path(base)}")
    if missing := getattr(found, "__abstractmethods__", ()):
        raise _broken(plugin, f"lacks {', '.join(sorted(missing))}")
    return found


def _broken(plugin: Plugin, reason: str) -> ConfigError:
    return ConfigError(f"{plugin.implementation} of {origin_of(plugin)} {reason}", value=plugin.kind)


@functools.cache
def _entry_points(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """By kind; more than one where packages are at odds. A search through all installed packages, once per process: some 8 ms."""
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for entry in metadata.entry_points(group=group):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return dict(sorted(found.items()))


@functools.cache
def _settings(base: type[Plugin], kind: str) -> type[Plugin]:
    """The class of the settings that an entry point names. Raises ConfigError where it cannot be used."""
    entries = _entry_points(base.group)[kind]
    if len(entries) > 1:
        raise ConfigError(f"is brought along by several packages, of which one has to go: {_named(entries)}")
    (entry,) = entries
    try:
        model = entry.load()
    except Exception as error:  # somebody else's module may raise anything
        raise ConfigError(
            f"the plug-in {_origin(entry)} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if reason := _breach(model, base, kind):
        raise ConfigError(f"the plug-in {_origin(entry)} {reason}")
    found: type[Plugin] = model
    return found


def _breach(model: Any, base: type[Plugin], kind: str) -> str | None:
    """What of the contract the settings break."""
    if not (isinstance(model, type) and issubclass(model, base)):
        return f"must name a subclass of simlap.config.{base.__name__}, not {model!r}"
    annotation = model.model_fields["kind"].annotation
    if get_origin(annotation) is not Literal or get_args(annotation) != (kind,):
        return f"must declare `kind: Literal[{kind!r}]` in {_path(model)}, as the entry point is called"
    implementation = getattr(model, "implementation", None)
    if not isinstance(implementation, str) or not all(implementation.partition(":")):
        return f"must set `implementation: ClassVar[str] = 'package.module:Class'` in {_path(model)}"
    for key in ("frozen", "strict", "extra"):
        if model.model_config.get(key) != Strict.model_config.get(key):
            return f"must leave model_config[{key!r}] of {_path(model)} as it is"
    return None


def _base(plugin: Plugin) -> type[Plugin]:
    return GatePlugin if isinstance(plugin, GatePlugin) else MethodPlugin


def _origin(entry: metadata.EntryPoint) -> Origin:
    assert entry.dist is not None  # of those that `entry_points` finds
    return Origin(entry.dist.name, entry.dist.version, f"{entry.name} = {entry.value}")


def _named(entries: tuple[metadata.EntryPoint, ...]) -> str:
    return ", ".join(str(_origin(entry)) for entry in entries)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _inside(value: Any, path: str) -> Iterator[tuple[str, Plugin]]:
    if isinstance(value, Plugin):
        yield path, value
    if isinstance(value, BaseModel):
        for name, item in value:
            yield from _inside(item, f"{path}.{name}")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _inside(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _inside(item, f"{path}.{i}")


def _unusable(
    key: str, value: object, message: str, choices: tuple[str, ...] | list[str] = ()
) -> PydanticCustomError:  # fmt: skip
    """As `wrong` of the schema, with a message of others' making."""
    words = {"message": message, "key": key, "value": value, "choices": list(choices)}
    return PydanticCustomError("wrong_key", "{message}", words)
