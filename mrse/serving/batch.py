"""Many queries from a file, answered into a TREC run file.

In: `id<TAB>text`, or `id<TAB>text<TAB>user`, one query per line, UTF-8. Out: `id Q0 item rank score tag`, ranks from 1.
Both are streamed; only the ids seen are kept. The output appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrse.errors import DataError
from mrse.index.client import Found
from mrse.index.filters import EVERYTHING, Filter
from mrse.progress import track
from mrse.serving.recall import Reader

_BATCH = 2048


@dataclass(frozen=True)
class Query:
    """One line of the file; `user` is None where the line names none."""

    query_id: str
    text: str
    user: str | None


def read_queries(path: Path) -> Iterator[Query]:
    """The queries of a file, in order. Empty lines are skipped.

    Raises:
        DataError: the file is missing or a line is malformed; the message has its number.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                query = _parse(raw, f"{path}:{number}", seen)
                if query is not None:
                    yield query
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def write_run(reader: Reader, queries: Path, k: int, out: Path, among: Filter = EVERYTHING) -> int:
    """Answer every query of a file with its k nearest items that `among` lets through; the number of queries.

    One model answers the whole file, the one that the reader has when this begins: scores of two do not compare.

    Raises:
        DataError: a line is malformed, or an item id has white space, which the format cannot hold.
    """
    tag = f"mrse-v{reader.pair.stamp.model_version}"
    partial = out.with_name(out.name + ".partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as run:
            for batch in _batches(track(read_queries(queries), "searching", unit="query")):
                answers = reader.rank([q.text for q in batch], [q.user for q in batch], k, pinned=True, among=among)
                for query, hits in zip(batch, answers, strict=True):
                    run.writelines(_lines(query, hits, tag))
                count += len(batch)
        partial.replace(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return count


def _parse(raw: bytes, where: str, seen: set[str]) -> Query | None:
    try:
        line = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8") from None
    if not line.strip():
        return None
    query_id, *rest = line.split("\t")
    if not 1 <= len(rest) <= 2:
        raise DataError(f"{where}: expected id<TAB>text or id<TAB>text<TAB>user, found {len(rest) + 1} column(s)")
    text = rest[0].strip()
    if not query_id or any(c.isspace() for c in query_id):
        raise DataError(f"{where}: the id {query_id!r} is empty or has white space, which a run file cannot hold")
    if not text:
        raise DataError(f"{where}: query {query_id!r} has no text")
    if query_id in seen:
        raise DataError(f"{where}: id {query_id!r} was used before")
    seen.add(query_id)
    return Query(query_id, text, (rest[1].strip() or None) if len(rest) == 2 else None)


def _batches(queries: Iterator[Query]) -> Iterator[Sequence[Query]]:
    batch: list[Query] = []
    for query in queries:
        batch.append(query)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _lines(query: Query, hits: Sequence[Found], tag: str) -> Iterator[str]:
    for rank, hit in enumerate(hits, start=1):
        if any(c.isspace() for c in hit.item_id):
            raise DataError(f"item id {hit.item_id!r} has white space, which a run file cannot hold")
        yield f"{query.query_id} Q0 {hit.item_id} {rank} {hit.score:.9g} {tag}\n"
