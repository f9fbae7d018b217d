"""The command line, `mrse`: ask the live index, see what is live and how it came to be, go back.

Settings live in `params.yaml`, not in flags. Heavy libraries are imported by the command that needs them, so that
`mrse --help` answers at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrse import config
from mrse.errors import DataError, MrseError
from mrse.layout import ABLATION, CARD, CHALLENGER_PACKAGE, GATE_REPORT, PROFILES, VALIDATION_DOCS

if TYPE_CHECKING:
    from mrse.serving.examples import Question
    from mrse.serving.recall import Hit

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_params_file = Path("params.yaml")
_MAX_TOP = 1000


def main() -> None:
    """Run the command line: an error that a user can mend is one message and exit status 1."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; see mrse/component.py
    try:
        app()
    except MrseError as error:
        print(f"mrse: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mrse {version('mrse')}")
        raise typer.Exit


@app.callback()
def options(
    params: Annotated[Path, typer.Option(help="The parameter file; its folder is the workspace.")] = Path(
        "params.yaml"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", "-v", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """MRSE: multi-modal product search that keeps itself fresh. The pipeline itself runs by `dvc repro`."""
    global _params_file
    _params_file = params
    if quiet:
        os.environ["MRSE_QUIET"] = "1"


@app.command()
def search(
    query: Annotated[list[str] | None, typer.Argument(help="What to look for; several are answered in turn.")] = None,
    user: Annotated[str | None, typer.Option(help="The shopper who asks; without a QUERY: what suits them.")] = None,
    like: Annotated[str | None, typer.Option(help="Instead of a QUERY, an item id: other items like it.")] = None,
    category: Annotated[str | None, typer.Option(help="Only this category and those below it: 'A > B'.")] = None,
    min_price: Annotated[float | None, typer.Option(help="Only items that cost at least this.")] = None,
    max_price: Annotated[float | None, typer.Option(help="Only items that cost at most this.")] = None,
    top: Annotated[int, typer.Option(min=1, max=_MAX_TOP, help="How many items.")] = 10,
    queries: Annotated[Path | None, typer.Option(help="Many queries: id<TAB>text[<TAB>user] per line.")] = None,
    run: Annotated[Path | None, typer.Option(help="With --queries: where to write, in TREC run format.")] = None,
    examples: Annotated[bool, typer.Option(help="Ask the shop's own frequent queries.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the pictures.")] = None,
) -> None:
    """Search the live index."""
    _check_search(query, like, user, queries, run, examples, html)
    params, workspace = _load()

    from mrse.index.filters import Filter
    from mrse.serving.recall import reading

    among = Filter(category, min_price, max_price)
    with reading(params.services) as reader:
        if queries is not None and run is not None:
            from mrse.serving.batch import write_run

            count = write_run(reader, queries, top, run, among)
            print(f"{count} queries answered into {run}")
            return
        from mrse.serving.examples import Question, choose

        if like is not None:
            questions, answers = [Question(f"like {like}")], reader.similar([like], top, among)
        else:
            if user is not None and reader.pair.shoppers.history(user) is None:
                print(f"mrse: shopper {user!r} has no history; searching as for a new one", file=sys.stderr)
            asked = [Question(text, user) for text in query or [""]]
            questions = choose(reader, workspace / PROFILES / "queries.parquet") if examples else asked
            answers = reader.search([q.text for q in questions], [q.user for q in questions], top, among)
        for question, hits in zip(questions, answers, strict=True):
            _print_answer(question, hits[:5] if examples else hits, heading=len(questions) > 1)
        if html is not None:
            from mrse.serving.page import write_page

            write_page(reader, questions, answers, workspace, html)
            print(f"The pictures are in {html}")


def _check_search(
    query: list[str] | None,
    like: str | None,
    user: str | None,
    queries: Path | None,
    run: Path | None,
    examples: bool,
    html: Path | None,
) -> None:
    """Refuse combinations of options that make no sense."""
    ways = sum([bool(query), like is not None, queries is not None, examples])
    if ways > 1 or (ways == 0 and user is None):
        raise DataError("give a QUERY, or --user alone, or --like ITEM, or --queries FILE --run OUT, or --examples")
    if (queries is None) != (run is None):
        raise DataError("--queries and --run go together")
    if queries is not None and (user is not None or html is not None):
        raise DataError("--user and --html do not go with --queries; the file may name a user per line")
    if like is not None and user is not None:
        raise DataError("--user does not go with --like: items alike are the same for everybody")
    if query and not all(text.strip() for text in query):
        raise DataError("the query is empty")


@app.command()
def status() -> None:
    """What is live: which collection, model and data, since when, and whether everything agrees."""
    params, workspace = _load()
    from mrse.serving.status import describe

    print(describe(params.services, workspace))


@app.command()
def runs(limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20) -> None:
    """Training runs and what became of them: version, window, live, and every decision with its lift and interval."""
    params, _ = _load()
    from mrse.serving.status import table_of_runs

    print(table_of_runs(params.services, limit))


@app.command()
def checkout(
    run: Annotated[str, typer.Argument(help="A run of the DAG mrse_daily: its id, or the beginning of it.")],
    folder: Annotated[Path | None, typer.Argument(help="A new or empty folder; default: .mrse/checkout/RUN.")] = None,
) -> None:
    """Restore a run's data, model and reports into a new folder, by the dvc.lock that is filed with it."""
    _, workspace = _load()
    # A process of its own: this library knows no DVC.
    command = [sys.executable, "-m", "components.exchange", "checkout", run, *([] if folder is None else [str(folder)])]
    done = subprocess.run(command, env=os.environ | {"MRSE_PIPELINE": str(workspace.resolve())}, check=False)
    raise typer.Exit(done.returncode)


@app.command()
def history() -> None:
    """Write a page of all decisions, and of the champion's figures over days."""
    params, workspace = _load()
    from mrse.evaluation.history_page import write_history

    print(write_history(params.services, workspace / _REPORTS[Report.history][0]))


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    days: Annotated[int | None, typer.Option(min=1, help="How many days; default: snapshot.days.")] = None,
) -> None:
    """Write the simulated shop of `marketplace` as files that `source: files` reads."""
    params, workspace = _load()
    from mrse.data.marketplace import located
    from mrse.data.marketplace import simulate as write

    stop = params.snapshot.stop
    start = stop - timedelta(days=days or params.snapshot.days)
    write(located(params.marketplace, workspace), start, stop, out)
    pictures = (
        f"zip://::{out}/images.zip" if params.marketplace.catalogue is None else params.marketplace.catalogue_images
    )
    print(
        f"{out} holds {start:%Y-%m-%d} to {stop:%Y-%m-%d} of a simulated shop. To run on it, set in params.yaml:\n"
        f"snapshot:\n  source: files\n  files:\n    items: {out}/items.parquet\n    events: {out}/events\n"
        f"    judgments: {out}/judgments.parquet" + (f"\n    image_root: {pictures}" if pictures else "")
    )


class Report(StrEnum):
    """What `mrse show` shows."""

    validation = "validation"
    gate = "gate"
    history = "history"
    search = "search"
    ablation = "ablation"
    card = "card"
    mlflow = "mlflow"


_REPORTS = {
    Report.validation: (VALIDATION_DOCS / "index.html", "dvc repro validate_logs"),
    Report.gate: (GATE_REPORT, "dvc repro gate"),
    Report.history: (Path("reports/history.html"), "mrse history"),
    Report.search: (Path("reports/search.html"), "mrse search --examples --html reports/search.html"),
    Report.ablation: (ABLATION / "ablation.md", "mrse ablate"),
    Report.card: (CARD, "mrse card"),
}


@app.command()
def show(report: Annotated[Report, typer.Argument(help="Which report.")]) -> None:
    """Open a report in the browser, or print where it is."""
    params, workspace = _load()
    if report is Report.mlflow:
        uri = params.services.mlflow_uri
        print(uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}")
        return
    name, made_by = _REPORTS[report]
    path = workspace / name
    if not path.is_file():
        raise DataError(f"{path} is not there yet; `{made_by}` makes it")
    print(path)
    if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
        typer.launch(str(path))


@app.command()
def reconcile() -> None:
    """Make MLflow's champion follow what is live, as every run of the pipeline does first."""
    params, _ = _load()
    from mrse.index import swap
    from mrse.index.client import exists, opened
    from mrse.index.lease import lease

    if not exists(params.services):
        print("Nothing is live yet.")
        return
    with (
        lease(Path(params.services.state_dir), params.swap_index.lease_seconds),
        opened(params.services) as store,
    ):
        live = swap.reconcile(store, params.services)
    if live is None:
        print("Nothing is live yet.")
    elif not live.known:
        raise DataError(
            f"MLflow does not know version {live.stamp.model_version}, which is live as {live.collection}; is "
            "services.mlflow_uri right?"
        )
    else:
        print(f"Live is {live.collection}; champion is version {live.champion}.")


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(help="The model version to go back to; default: the one before.")] = None,
) -> None:
    """Put an earlier collection live again, and its model version with it."""
    params, workspace = _load()
    from mrse.index import swap

    live = swap.rollback(params, workspace, to)
    print(f"Live is {live.collection}, model version {live.stamp.model_version}, since {live.stamp.since}.")


@app.command()
def force(
    version: Annotated[int, typer.Argument(help="The model version that the gate did not promote.")],
    reason: Annotated[str, typer.Option(help="Why it shall go live all the same; kept for good.")] = "",
    by: Annotated[str, typer.Option(help="The name of who answers for it; kept for good.")] = "",
) -> None:
    """Override the gate's newest decision about a version, with a reason and a name."""
    params, workspace = _load()
    from mrse.evaluation.override import force as override

    print(override(params.services, workspace, version, reason, by))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The folder to write to; what is in it goes.")],
    model: Annotated[Path | None, typer.Option(help="A model package; default: models/challenger.")] = None,
    int8_items: Annotated[bool, typer.Option(help="The item encoder in 8 bits: faster, slightly off.")] = False,
) -> None:
    """Write a model's query and item encoders as ONNX files, to serve without torch."""
    _, workspace = _load()
    from mrse.model.export import export_encoders
    from mrse.model.retriever import Retriever

    retriever = Retriever.load(workspace / CHALLENGER_PACKAGE if model is None else model)
    export_encoders(retriever, out, int8_items)
    print(f"{out} holds the encoders of model {retriever.fingerprint[:12]}")


@app.command()
def ablate(
    only: Annotated[list[str] | None, typer.Option(help="A variant or a group of ablate.variants; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings of each, from train.seed on.")] = 3,
    steps_share: Annotated[float, typer.Option(min=0.001, max=1.0, help="Of the training's steps.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Where runs are kept; default: reports/ablation.")] = None,
) -> None:
    """Train variants of the model and compare each with the full one. Goes on where it was stopped."""
    params, workspace = _load()
    from mrse.evaluation.ablation import run_ablation
    from mrse.evaluation.ablation_report import in_short, write_ablation

    folder = workspace / ABLATION if out is None else out
    ablation = run_ablation(params, workspace, folder, only or (), seeds, steps_share)
    files = write_ablation(ablation, folder)
    print(in_short(ablation))
    print(f"\nIn full: {', '.join(str(path) for path in files)}")


@app.command()
def card() -> None:
    """Write the challenger's model card, reports/model-card.md, from what training, gate and ablations found."""
    _, workspace = _load()
    from mrse.evaluation.card import write_card

    print(write_card(workspace))


def _load() -> tuple[config.Params, Path]:
    """The parameters, with local services placed under the workspace, and the workspace."""
    params = config.load(_params_file)
    workspace = _params_file.parent
    return params.model_copy(update={"services": params.services.under(workspace)}), workspace


def _print_answer(question: Question, hits: list[Hit], heading: bool) -> None:
    if heading:
        print(f"\n{question.text}" + (f"  (shopper {question.user})" if question.user else ""))
    if not hits:
        print("  nothing found")
    width = max((len(hit.item_id) for hit in hits), default=0)
    for rank, hit in enumerate(hits, start=1):
        price = "" if hit.price is None else f"  {hit.price:,.2f}"
        print(f"{rank:3}  {hit.score:.3f}  {hit.item_id:<{width}}  {hit.title}{price}")
