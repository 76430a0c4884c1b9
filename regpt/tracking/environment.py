"""The environment of a run, as environment.json stores it: code, packages, machine, data, command."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from regpt.base.errors import UserError
from regpt.corpus.public_corpora import PublicCorpus, corpus_of_imported_shards, corpus_of_source
from regpt.data.token_statistics import TokenStatistics
from regpt.data.validation_split import ValidationSplit
from regpt.inspection.duplicate_record import SplitDuplicates
from regpt.tracking.layout import RunPaths

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """The device of the first attempt; one of them where several ranks have one each."""

    place: str = ""  # as PyTorch names it: cpu, cuda:0, mps
    name: str = ""
    precision: str = ""
    compiled: bool = False
    peak_flops: float = 0.0  # per second; 0: unknown
    peak_source: str = ""
    peak_measurements: int = 0  # that agreed; 0: from a table, or by an earlier version, which measured once

    @property
    def type(self) -> str:
        """cpu, cuda or mps."""
        return self.place.partition(":")[0]

    @property
    def known_peak(self) -> float:
        """The peak FLOP/s from a table or from several measurements that agreed; 0 where it is neither."""
        return self.peak_flops if self.peak_measurements > 1 or self.type == "cuda" else 0.0


@dataclass(frozen=True, kw_only=True)
class Packages:
    """Versions."""

    python: str = ""
    torch: str = ""
    numpy: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    name: str = ""
    vocabulary_sha256: str = ""

    @property
    def label(self) -> str:
        """Name and short digest; empty where they are unknown."""
        return f"{self.name} {self.vocabulary_sha256[:12]}".strip()


@dataclass(frozen=True, kw_only=True)
class TokenizerBackend:
    """The program that encoded the text."""

    tokenizer_backend: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Where the text of a dataset came from."""

    asked: str = ""  # data.source when it was prepared: hub:…, stdlib, or a path
    description: str = ""
    imported: bool = False  # shards that regpt did not prepare; their text is unknown
    other: dict[str, Any] = field(default_factory=dict)  # further entries, kept as they are


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """The dataset."""

    digest: str = ""
    tokenizer: TokenizerInfo = field(default_factory=TokenizerInfo)
    source: SourceInfo = field(default_factory=SourceInfo)
    train_tokens: int = 0  # 0: unknown
    validation_tokens: int = 0
    shards: int = 0
    text_bytes: int = 0  # 0: unknown
    made_with: TokenizerBackend | None = None  # None: unknown
    split: ValidationSplit | None = None  # how validation was chosen; None: by an earlier version, unknown
    statistics: TokenStatistics | None = None  # None: unknown
    duplicates: SplitDuplicates | None = None  # None: not searched for before the run

    def corpus(self, path: str) -> PublicCorpus:
        """Return the public corpus of the text. `path` is data.path of the run; it counts for imported shards only."""
        if self.source.imported:
            return corpus_of_imported_shards(f"{self.source.description} {path}")
        return corpus_of_source(self.source.asked)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model whose weights a run started from (run.init_from)."""

    name: str = ""
    where: str = ""  # a path, or hub:OWNER/NAME@COMMIT
    weights_sha256: str = ""
    step: int = 0  # of its training; 0: unknown
    tokens: int = 0  # that it had seen; 0: unknown


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The code, packages, machine, data and command of a run."""

    recipe_name: str = ""
    recipe_digest: str = ""
    code_version: str = ""
    packages: Packages = field(default_factory=Packages)
    system: str = ""
    device: DeviceInfo = field(default_factory=DeviceInfo)
    ranks: int = 1
    data: DataInfo = field(default_factory=DataInfo)
    command: list[str] = field(default_factory=list)
    origin: Origin | None = None  # None: weights from the seed

    @classmethod
    def read(cls, run: Path) -> "Environment":
        """Read environment.json of a run directory. Raises UserError where it is missing or incomplete."""
        path = RunPaths(run).environment
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(f"{path}: is missing or incomplete", "copy the whole run directory") from None

    @classmethod
    def from_json(cls, values: Any) -> "Environment":
        """Build from what the file stores. Missing or malformed entries have their defaults. ValueError: no object."""
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return build(
            cls,
            values,
            packages=build(Packages, values.get("packages")),
            device=build(DeviceInfo, values.get("device")),
            data=data_info(values.get("data")),
            origin=build(Origin, values["origin"]) if values.get("origin") else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the file stores."""
        stored = asdict(self)
        if not self.device.peak_measurements:
            del stored["device"]["peak_measurements"]  # as earlier versions wrote it
        if self.origin is None:
            del stored["origin"]
        data = stored["data"]
        data["source"] = source_json(self.data.source)
        data["made_with"] = data["made_with"] or {}
        for name in ("split", "statistics", "duplicates"):
            if data[name] is None:
                del data[name]  # as earlier versions wrote it
        return stored


def build(kind: type[T], values: Any, **given: Any) -> T:
    """Build a dataclass whose fields all have defaults from the entries of the right type; others are ignored."""
    known = values if isinstance(values, Mapping) else {}
    default = kind()
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name in known and entry.name not in given:
            usual = type(getattr(default, entry.name))
            if isinstance(known[entry.name], (float, int) if usual is float else usual):
                given[entry.name] = known[entry.name]
    return kind(**given)


def data_info(values: Any) -> DataInfo:
    known = values if isinstance(values, Mapping) else {}
    made_with = known.get("made_with")
    return build(
        DataInfo,
        known,
        tokenizer=build(TokenizerInfo, known.get("tokenizer")),
        source=source_info(known.get("source")),
        made_with=build(TokenizerBackend, made_with) if made_with else None,
        split=record_or_none(ValidationSplit.from_json, known.get("split")),
        statistics=record_or_none(TokenStatistics.from_json, known.get("statistics")),
        duplicates=record_or_none(SplitDuplicates.from_json, known.get("duplicates")),
    )


def record_or_none(read: Callable[[Any], T], values: Any) -> T | None:
    """Read a record that earlier versions did not store; None where it is missing or malformed."""
    try:
        return read(values)
    except (TypeError, KeyError, ValueError):
        return None


def source_info(values: Any) -> SourceInfo:
    """Build from a manifest's or an environment's entry `source`."""
    known = values if isinstance(values, Mapping) else {}
    other = {name: value for name, value in known.items() if name not in ("asked", "description", "imported")}
    return build(SourceInfo, known, other=other)


def source_json(source: SourceInfo) -> dict[str, Any]:
    imported = {"imported": True} if source.imported else {}
    return {"asked": source.asked, "description": source.description, **source.other, **imported}
