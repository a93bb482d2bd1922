"""The provider's section: one engine in plain keys, or several ``[[provider.engine]]`` tables."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from aimo_node.config.section import Section
from aimo_node.config.values import Arguments, Duration, ModelNames, OptionalPath, Texts

ENGINES_MAX: Final = 16
"""Engines of one provider: each has models in memory; more is a mistake."""
FORM_TABLES: Final = "tables"
"""Stands in the path of an error, where the form of `provider.engine` was decided."""
WAITING_DEFAULT: Final = 16
"""Requests that may wait for an engine: enough for a burst, few enough to be answered soon."""


class EngineOptions(Section):
    """What can be said about an engine, whichever it is."""

    model: str = Field(
        default="",
        description=(
            "Model the engine is to serve; llama without one serves `tiny`, an upstream's `*` are"
            " all it has."
        ),
    )
    models: ModelNames = Field(
        default={},
        description="Several models: names in the mesh, each with the engine's own name.",
    )
    served_name: str = Field(
        default="", description="Name of the model in the mesh, if not the engine's own."
    )
    endpoint: str = Field(
        default="", description="URL of a server that already runs, for engines that use one."
    )
    api_key_file: OptionalPath = Field(
        default=None, description="File with the upstream's API key; it never leaves the provider."
    )
    api_key_env: str = Field(
        default="", description="Environment variable with the upstream's API key, instead."
    )
    engine_args: Arguments = Field(
        default=(), description="The engine's own arguments, split as a shell would."
    )
    requests_max: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Requests served at the same time; 0 leaves it to the engine.",
    )
    waiting_max: int = Field(
        default=WAITING_DEFAULT,
        ge=0,
        le=10_000,
        description="Requests that may wait for a place; more are sent to other providers.",
    )
    idle_unload: Duration = Field(
        default=0.0,
        ge=0,
        description="Unload after so long without a request, such as 10m; 0 keeps it loaded.",
    )
    tokens_max: int = Field(
        default=0, ge=0, description="The most tokens one answer may have; 0 sets no limit."
    )
    media_domains: Texts = Field(
        default=(),
        description="Hosts from which the engine may fetch images and such; none by default.",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> EngineOptions:
        if self.models and (self.model or self.served_name):
            raise ValueError("give either models or model and served_name, not both")
        if self.api_key_file is not None and self.api_key_env:
            raise ValueError("give either api_key_file or api_key_env, not both")
        return self


class EngineSection(EngineOptions):
    """One ``[[provider.engine]]``."""

    name: str = Field(min_length=1, description="Engine by name, such as vllm.")


def _as_tables(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _form(value: object) -> str:
    return "name" if isinstance(value, str) else FORM_TABLES


_Tables = Annotated[tuple[EngineSection, ...], Field(max_length=ENGINES_MAX)]
Engines = Annotated[
    Annotated[str, Tag("name")] | Annotated[_Tables, BeforeValidator(_as_tables), Tag(FORM_TABLES)],
    Discriminator(_form),
]


class ProviderSettings(EngineOptions):
    """Which engines serve which models."""

    engine: Engines = Field(
        default="",
        description=(
            "Engine by name: llama, vllm, openai, anthropic, copilot, echo or a plug-in's; or"
            " several [[provider.engine]] tables, each with `name` and the keys below. up: llama."
        ),
    )
    region: str = Field(
        default="", max_length=64, description="Where the provider stands, in your own words."
    )
    quota_requests_per_day: int = Field(
        default=0,
        ge=0,
        description="Requests each peer may make in a day (UTC); 0 sets no limit.",
    )
    quota_tokens_per_day: int = Field(
        default=0,
        ge=0,
        description="Tokens, prompts and answers, each peer may use in a day (UTC); 0: no limit.",
    )

    @model_validator(mode="after")
    def _tables_say_everything(self) -> ProviderSettings:
        if not isinstance(self.engine, str):
            said = sorted(set(EngineOptions.model_fields) & self.model_fields_set)
            if said:
                raise ValueError(
                    f"{said[0]} stands beside [[provider.engine]] tables, where it belongs into one"
                    " of them; or name one engine with it, which replaces the tables"
                )
        return self

    @property
    def engines(self) -> tuple[EngineSection, ...]:
        """Every engine, however it was said; none without."""
        if not isinstance(self.engine, str):
            return self.engine
        if not self.engine:
            return ()
        own = {name: getattr(self, name) for name in EngineOptions.model_fields}
        return (EngineSection(name=self.engine, **own),)
