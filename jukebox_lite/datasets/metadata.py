"""metadata.csv or metadata.jsonl beside the music: labels by file (the form of Hugging Face's audiofolder)."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jukebox_lite.errors import InputError
from jukebox_lite.levels import LYRICS

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "val"}
_LONGEST_FIELD = 2**31 - 1  # characters; csv's own limit is shorter than an opera


@dataclass(frozen=True)
class Row:
    """What the metadata says of one file."""

    labels: dict[str, str]  # only what is known
    split: str | None  # "train", "val", or None where it does not say
    lyrics: str = ""  # as they are written; empty where there are none


def read_metadata(root: Path) -> tuple[str, dict[str, Row]]:
    """The metadata file's name, and its rows by the file's name relative to `root`; ("", {}) where there is none.

    Raises InputError naming file and line on anything but a table with a `file_name` column.
    """
    found = [name for name in ("metadata.csv", "metadata.jsonl") if (root / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{root}: has both metadata.csv and metadata.jsonl, expected one; remove the other")
    if not found:
        return "", {}
    path = root / found[0]
    records = _csv_records(path) if path.suffix == ".csv" else _jsonl_records(path)
    rows: dict[str, Row] = {}
    for place, record in records:
        name = _file_name(record, place)
        if name in rows:
            raise InputError(f"{place}: {name!r} is listed twice, expected one row a file; remove one")
        lyrics = record.get(LYRICS) or ""
        if not isinstance(lyrics, str):
            raise InputError(f"{place}: lyrics {lyrics!r:.60}, expected one text, its lines parted by line breaks")
        labels = {key: text for key, value in record.items() if key != LYRICS and (text := _text(value))}
        split = labels.pop("split", "").lower()
        del labels["file_name"]
        if split and split not in _SPLITS:
            raise InputError(f"{place}: split {split!r}, expected train, val, validation or test")
        rows[name] = Row(labels, _SPLITS.get(split), lyrics)
    return path.name, rows


def _csv_records(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """("file, line n", record) of every row of a csv file."""
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = [name.strip() for name in reader.fieldnames or []]
            if "file_name" not in header or len(set(header)) < len(header):
                raise InputError(f"{path}, line 1: expected a header of distinct columns, one of them file_name")
            reader.fieldnames = header
            for record in reader:
                place = f"{path}, line {reader.line_num}"
                if None in record or None in record.values():
                    raise InputError(f"{place}: expected {len(header)} fields as in the header; quote commas")
                yield place, record
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, line {reader.line_num + 1}: not csv in UTF-8 ({error})") from error


def _jsonl_records(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """("file, line n", record) of every line of a jsonl file."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
            json.dumps(record, ensure_ascii=False).encode()  # "\\ud800" is half a character: no file can take it
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: expected one JSON object a line ({error})") from error
        if not isinstance(record, dict) or "file_name" not in record:
            raise InputError(f'{place}: expected an object with a file_name, as {{"file_name": "a.wav"}}')
        yield place, record


def _file_name(record: Mapping[str, object], place: str) -> str:
    """The row's file as a posix path inside the folder."""
    value = record["file_name"]
    text = value.strip() if isinstance(value, str) else ""
    name = PurePosixPath(text)
    if not text or name.is_absolute() or ".." in name.parts:
        raise InputError(f"{place}: file_name {value!r}, expected a path inside the folder, as jazz/one.wav")
    return name.as_posix()


def joined(values: Iterable[object]) -> str:
    """Several values of a label as one text: "rock; jazz"."""
    return "; ".join(text for value in values if (text := _text(value)))


def _text(value: object) -> str:
    """A label's value, or list of values, as text; empty where nothing is known."""
    if isinstance(value, list):
        return joined(value)
    return "" if value is None else " ".join(str(value).split())
