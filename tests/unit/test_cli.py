"""Every command as a person calls it: what it prints, and one message with exit status 1 where it cannot."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mrse import cli, tracking
from mrse.index.build import build
from mrse.index.client import opened
from mrse.index.swap import swap
from mrse.jsonfile import read_json
from tests import fake_shop
from tests.index_fixtures import mlflow_uri, services, shop, workspace  # noqa: F401  fixtures


@pytest.fixture
def mrse(shop, services, capsys, monkeypatch):  # noqa: F811
    """Call `mrse …` in the shop's workspace: exit status, stdout, stderr."""
    params = fake_shop.params_for(services)
    (shop / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    monkeypatch.chdir(shop)
    monkeypatch.setenv("MRSE_QUIET", "1")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mrse", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


@pytest.fixture
def go_live(shop, services):  # noqa: F811
    params = fake_shop.params_for(services)
    build(params, shop)
    return lambda: (build(params, shop), swap(params, shop))[1]


def test_search_prints_rank_score_id_and_title(mrse, go_live):
    go_live()
    code, out, err = mrse("search", "red dress", "--top", 2)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.split()[0] == "1" and first.endswith("a1  red dress  30.00")
    assert float(first.split()[1]) >= float(second.split()[1])


def test_search_for_a_shopper_and_for_a_stranger(mrse, go_live):
    go_live()
    assert "blue dress" in mrse("search", "blue", "--user", "dresser", "--top", 1)[1]
    assert "blue shirt" in mrse("search", "blue", "--user", "shirty", "--top", 1)[1]
    code, _, err = mrse("search", "blue", "--user", "nobody")
    assert code == 0 and "shopper 'nobody' has no history" in err


def test_search_within_a_category_and_a_price(mrse, go_live):
    go_live()
    out = mrse("search", "blue", "--category", "Clothing", "--max-price", 20)[1]
    assert [line.split()[2] for line in out.splitlines()] == ["b1"]
    assert mrse("search", "blue", "--category", "Cloth")[1] == "  nothing found\n"


def test_items_like_one_and_items_for_a_shopper(mrse, go_live):
    go_live()
    assert mrse("search", "--like", "c1", "--top", 1)[1].split()[2] == "c2"
    code, _, err = mrse("search", "--like", "none")
    assert code == 1 and "item 'none' is not in the live index" in err
    assert mrse("search", "--user", "dresser", "--top", 1)[1].split()[2] == "a2"


def test_many_queries_become_a_run_file(mrse, go_live, shop):  # noqa: F811
    version = go_live()["version"]
    (shop / "q.tsv").write_bytes(b"\xef\xbb\xbfq1\tred dress\r\n\nq2\tblue\tdresser\nq3\tblue\tshirty\n")
    code, out, _ = mrse("search", "--queries", "q.tsv", "--top", 2, "--run", "out.run")
    assert code == 0 and out == "3 queries answered into out.run\n"
    rows = [line.split(" ") for line in (shop / "out.run").read_text().splitlines()]
    assert [row[0] for row in rows] == ["q1", "q1", "q2", "q2", "q3", "q3"]
    assert [(row[1], row[3], row[5]) for row in rows[:2]] == [
        ("Q0", "1", f"mrse-v{version}"),
        ("Q0", "2", f"mrse-v{version}"),
    ]
    assert [rows[0][2], rows[2][2], rows[4][2]] == ["a1", "a2", "b2"]
    assert all(float(a[4]) >= float(b[4]) for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_a_malformed_query_file_names_the_line_and_leaves_no_output(mrse, go_live, shop):  # noqa: F811
    go_live()
    (shop / "q.tsv").write_text("q1\tred\nq2 blue\n")
    code, _, err = mrse("search", "--queries", "q.tsv", "--run", "out.run")
    assert code == 1 and err.startswith("mrse: q.tsv:2: expected id<TAB>text")
    assert not [path.name for path in shop.iterdir() if path.name.startswith("out.run")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a QUERY"),
        (["red", "--examples"], "give a QUERY"),
        ([" "], "the query is empty"),
        (["--queries", "q.tsv"], "--queries and --run go together"),
        (["red", "--run", "x"], "--queries and --run go together"),
        (["red", "--like", "a1"], "give a QUERY"),
        (["--like", "a1", "--user", "u"], "--user does not go with --like"),
        (["red", "--min-price", "-1"], "min_price must be a number of at least 0"),
        (["red", "--min-price", "9", "--max-price", "8"], "nothing can match"),
        (["--queries", "q", "--run", "x", "--user", "u"], "--user and --html do not go with --queries"),
    ],
)
def test_searches_that_make_no_sense_are_explained(mrse, arguments, message):
    code, _, err = mrse("search", *arguments)
    assert code == 1 and message in err


def test_examples_show_frequent_queries_and_two_tastes_and_write_a_page(mrse, go_live, shop):  # noqa: F811
    go_live()
    code, out, _ = mrse("search", "--examples", "--html", "reports/search.html")
    assert code == 0
    for heading in ("red dress", "leather boots", "blue  (shopper dresser)", "blue  (shopper shirty)"):
        assert f"\n{heading}\n" in out
    page = (shop / "reports/search.html").read_text()
    assert page.count("<section>") == 5
    assert "The shoppers of this shop are simulated." in page
    assert "http" not in page.replace("<!doctype html>", ""), "nothing is fetched from elsewhere"


def test_a_page_escapes_what_sellers_write(mrse, shop, services):  # noqa: F811
    fake_shop.open_shop(shop, [("x", "<script>alert(1)</script>", None, None, "none.png"), *fake_shop.ITEMS])
    params = fake_shop.params_for(services)
    build(params, shop)
    swap(params, shop)
    mrse("search", "dress", "--html", "page.html")
    page = (shop / "page.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_status_is_true_in_every_state(mrse, go_live, shop, services):  # noqa: F811
    version = read_json(shop / "models/challenger.json")["version"]
    assert f"newest    version {version}, PROMOTE" in mrse("status")[1]

    with opened(services) as store:
        built = next(iter(store.collections()))
    out = mrse("status")[1]
    assert "nothing is live" in out and f"{built}, verified, never live" in out

    live = go_live()
    out = mrse("status")[1]
    assert f"live      {built} since {live['since']}" in out
    assert f"champion  version {version}, as live" in out
    assert "2026-03-01 to 2026-03-15, simulated shoppers" in out and "items     6\n" in out
    assert "newest" not in out

    other = fake_shop.train_challenger(shop, services, seed=2, outcome="HOLD")
    tracking.set_champion(services, other)
    out = mrse("status")[1]
    assert f"version {other}, but live is version {version}: `mrse reconcile` mends it" in out
    assert f"newest    version {other}, HOLD" in out

    with opened(services) as store:
        store._client.delete(built, ids=["a1"])
        stamp = store.stamp(built)
        store.create("mrse_v9_half", fake_shop.params_for(services).build_index, stamp.with_(state="building"))
    out = mrse("status")[1]
    assert "items     5, but 6 were verified: rebuild" in out
    assert "mrse_v9_half, not verified" in out


def test_a_live_collection_that_was_dropped_is_told_and_mended(mrse, go_live, shop, services):  # noqa: F811
    first = go_live()
    fake_shop.train_challenger(shop, services, seed=2)
    second = go_live()
    with opened(services) as store:
        store.point(None)
        store.drop(second["collection"])
    out = mrse("status")[1]
    assert f"nothing is live, but MLflow's champion is version {second['version']}" in out
    assert f"{first['collection']}, kept to roll back to" in out
    code, _, err = mrse("search", "red")
    assert code == 1 and "nothing is live yet" in err
    assert f"model version {first['version']}" in mrse("rollback", "--to", first["version"])[1]
    assert go_live()["collection"] == second["collection"], "the next run builds it again"


def test_status_before_anything_makes_nothing(mrse, shop, services):  # noqa: F811
    assert "nothing is live" in mrse("status")[1]
    assert not (shop / "milvus.db").exists()


def test_runs_tell_decision_lift_and_what_is_live(mrse, go_live, shop, services):  # noqa: F811
    live = go_live()["version"]
    fake_shop.log_decision(services, live, "REJECT", day="2026-03-14")
    fake_shop.log_decision(services, live, "HOLD", forced_by="Ada", forced_reason="why not", forced_at="2026-03-15")
    other = fake_shop.train_challenger(shop, services, seed=2, outcome="HOLD")
    header, newest, older, first = mrse("runs", "--limit", 2)[1].splitlines()
    assert header.split() == ["version", "started", "run", "window", "live", "lift", "decision"]
    assert newest.startswith(f"{other} ") and newest.endswith("not judged") and "  live  " not in newest
    assert older.startswith(f"{live} ") and "2026-03-01 to 2026-03-15  live  " in older
    assert "+0.012 [−0.003, +0.027] recall@50 over the champion" in older
    assert older.endswith("PROMOTE, forced by Ada over HOLD (no_proven_lift)")
    assert first.startswith(f"{live} ") and first.endswith("REJECT (no_proven_lift)"), "every decision has its line"


def test_status_tells_an_override(mrse, go_live, services):  # noqa: F811
    version = go_live()["version"]
    assert "forced" not in mrse("status")[1]
    fake_shop.log_decision(services, version, "REJECT")
    code, out, _ = mrse("force", version, "--reason", "new titles", "--by", "Ada")
    assert code == 0 and out.startswith(f"Version {version} is promoted by Ada over REJECT;")
    assert "\nforced    by Ada over REJECT: new titles\n" in mrse("status")[1] + "\n"


def test_history_writes_one_page_that_show_opens(mrse, shop, services):  # noqa: F811
    code, _, err = mrse("show", "history")
    assert code == 1 and "`mrse history` makes it" in err
    fake_shop.log_decision(services, 1, "PROMOTE")
    code, out, _ = mrse("history")
    assert code == 0 and out == "reports/history.html\n"
    assert mrse("show", "history") == (0, "reports/history.html\n", "")
    page = (shop / "reports/history.html").read_text()
    assert "<svg" in page and "http" not in page.replace("<!doctype html>", "") and "<script" not in page


def test_an_override_needs_a_reason_a_name_and_a_decision(mrse):
    assert mrse("force", 7, "--by", "Ada")[2] == "mrse: an override needs a reason (--reason): it is kept for good\n"
    assert mrse("force", 7, "--reason", "x")[2] == "mrse: an override needs a name (--by): it is kept for good\n"
    code, _, err = mrse("force", 4711, "--reason", "x", "--by", "Ada")
    assert code == 1 and err.startswith("mrse: the gate has not judged version 4711; run it first")


def test_reconcile_and_rollback(mrse, go_live, shop, services):  # noqa: F811
    assert mrse("reconcile") == (0, "Nothing is live yet.\n", "")
    first = go_live()
    second_version = fake_shop.train_challenger(shop, services, seed=2)
    second = go_live()
    assert second["previous"] == first["collection"]

    code, out, _ = mrse("rollback")
    assert code == 0 and f"Live is {first['collection']}, model version {first['version']}" in out
    assert tracking.champion(services).version == first["version"]
    assert f"model version {second_version}" in mrse("rollback", "--to", second_version)[1]
    code, _, err = mrse("rollback", "--to", 4711)
    assert code == 1 and err.startswith("mrse: no collection of model version 4711 that was live is kept")

    tracking.set_champion(services, first["version"])
    assert mrse("reconcile")[1] == f"Live is {second['collection']}; champion is version {second_version}.\n"


def test_simulate_writes_what_the_files_source_reads(mrse, shop):  # noqa: F811
    small = {"items": 40, "shoppers": 10, "events_per_day": 50, "image_size": 16}
    raw = yaml.safe_load((shop / "params.yaml").read_text())
    (shop / "params.yaml").write_text(yaml.safe_dump({**raw, "marketplace": {**raw["marketplace"], **small}}))
    code, out, _ = mrse("simulate", "--out", "elsewhere", "--days", 2)
    assert code == 0 and "elsewhere holds 2026-03-13 to 2026-03-15" in out
    given = yaml.safe_load(out.partition("in params.yaml:\n")[2])
    files = given["snapshot"]["files"]
    assert given["snapshot"]["source"] == "files"
    assert pq.read_table(files["items"]).num_rows > 0
    assert len(list((shop / files["events"]).iterdir())) == 2
    assert files["image_root"] == "zip://::elsewhere/images.zip"


def test_simulate_finds_a_given_catalogue_from_any_folder(mrse, shop, monkeypatch):  # noqa: F811
    rows = {"item_id": ["a", "b"], "title": ["red shirt", "blue shirt"], "kind": ["shirt", "shirt"]}
    pq.write_table(pa.table(rows), shop / "given.parquet")
    given = {"catalogue": "given.parquet", "catalogue_images": "photos.zip", "labels": {"type": "kind"}}
    small = {"shoppers": 10, "events_per_day": 50, **given}
    raw = yaml.safe_load((shop / "params.yaml").read_text())
    (shop / "params.yaml").write_text(yaml.safe_dump({**raw, "marketplace": small}))
    (shop / "below").mkdir()
    monkeypatch.chdir(shop / "below")
    code, out, error = mrse("--params", shop / "params.yaml", "simulate", "--out", "out", "--days", 1)
    assert code == 0, error
    assert "image_root: photos.zip" in out
    assert pq.read_table("out/items.parquet")["item_id"].to_pylist() == ["a", "b"]


def test_show_prints_where_a_report_is(mrse, shop, services):  # noqa: F811
    code, _, err = mrse("show", "gate")
    assert code == 1 and "`dvc repro gate` makes it" in err
    page = shop / "reports/gate/index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("<p>")
    assert mrse("show", "gate")[:2] == (0, "reports/gate/index.html\n")
    assert mrse("show", "mlflow")[1] == f"mlflow ui --backend-store-uri {services.mlflow_uri}\n"
    assert mrse("show", "nonsense")[0] == 2


def test_what_is_missing_is_one_message(mrse, shop):  # noqa: F811
    assert mrse("search", "red")[::2] == (
        1,
        "mrse: nothing is live yet; run the pipeline (`dvc repro`), then `mrse status`\n",
    )
    (shop / "params.yaml").write_text("nonsense: 1\nsnapshot: {end: 2026-01-01}\n")
    code, _, err = mrse("status")
    assert code == 1 and "nonsense: unknown key" in err
    code, _, err = mrse("--params", "elsewhere.yaml", "status")
    assert code == 1 and "elsewhere.yaml: no such file" in err


def test_version_and_help(mrse):
    assert mrse("--version")[1].startswith("mrse 0.")
    assert all(name in mrse("--help")[1] for name in ("search", "status", "runs", "simulate", "show", "rollback"))
