"""The file of queries: what is read, and which line is at fault."""

import pytest

from mrse.errors import DataError
from mrse.index import swap as swapping
from mrse.index.build import build
from mrse.index.client import opened
from mrse.serving import batch
from mrse.serving.batch import Query, read_queries, write_run
from mrse.serving.recall import Reader
from tests import fake_shop


def test_ids_texts_and_users_are_read_in_order(tmp_path):
    path = tmp_path / "q.tsv"
    path.write_bytes("\ufeffq1\tred dress\r\n\nq2\t Größe \tu1\nq3\tred\t\n".encode())
    assert list(read_queries(path)) == [
        Query("q1", "red dress", None),
        Query("q2", "Größe", "u1"),
        Query("q3", "red", None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q1\tred\nq2 blue\n", r"q.tsv:2: expected id<TAB>text or id<TAB>text<TAB>user, found 1 column"),
        (b"q1\ta\tb\tc\n", r"q.tsv:1: expected id<TAB>text or id<TAB>text<TAB>user, found 4 column"),
        (b"q1\tred\nq1\tblue\n", r"q.tsv:2: id 'q1' was used before"),
        (b"\tred\n", r"q.tsv:1: the id '' is empty"),
        (b"q 1\tred\n", r"q.tsv:1: the id 'q 1' is empty or has white space"),
        (b"q1\t  \n", r"q.tsv:1: query 'q1' has no text"),
        (b"q1\tred\nq2\t\xff\xfe\n", r"q.tsv:2: not UTF-8"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, content, message):
    path = tmp_path / "q.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_queries(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"q.tsv: cannot be read: No such file"):
        list(read_queries(tmp_path / "q.tsv"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_queries(tmp_path))


def test_one_model_answers_the_whole_file(shop, services, tmp_path, monkeypatch):
    params = fake_shop.params_for(services)
    first = build(params, shop)["collection"]
    swapping.swap(params, shop)
    fake_shop.train_challenger(shop, services, seed=2)
    second = build(params, shop)["collection"]
    swapping.swap(params, shop)
    (tmp_path / "q.tsv").write_text("q1\tred dress\nq2\tblue shirt\n")
    monkeypatch.setattr(batch, "_BATCH", 1)
    asked = []
    with opened(services) as store:
        store.point(first)
        reader = Reader(store, services)
        search = store.search

        def swapped_meanwhile(collection, *arguments):
            asked.append(collection)
            store.point(second)
            return search(collection, *arguments)

        monkeypatch.setattr(store, "search", swapped_meanwhile)
        assert write_run(reader, tmp_path / "q.tsv", 2, tmp_path / "run.trec") == 2
        tag = f"mrse-v{reader.pair.stamp.model_version}"
        assert reader.follow(), "the next one follows"
    assert asked == [first, first]
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert len(lines) == 4 and all(line.endswith(tag) for line in lines)
