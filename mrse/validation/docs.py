# mypy: disable-error-code="attr-defined, no-untyped-call"
# Great Expectations re-exports its classes implicitly.
"""`reports/validation/`: one page that says what happened, and Great Expectations' own pages with every expectation.

All pages open from disk: what Great Expectations' pages would load from the internet is taken out, and a small style
sheet put in.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import Environment, StrictUndefined

from mrse.validation.engine import SuiteRun

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_REMOTE = re.compile(
    r"<script[^>]*\bsrc=\"https?://[^>]*>\s*</script>|<link[^>]*\bhref=\"https?://[^>]*>", re.IGNORECASE
)
_REMOTE_IMAGE = re.compile(r"<img[^>]*\bsrc=\"https?://[^>]*>", re.IGNORECASE)
_BACK = '<p class="mrse-back"><a href="../index.html">&larr; all of this run</a></p>'


def write(summary: dict[str, Any], runs: list[SuiteRun], folder: Path) -> None:
    """Write the pages; an earlier report in the folder is replaced.

    Args:
        summary: `reports/validation.json`.
        runs: the suites of the run, in order; `summary["suites"]` lists the same.
        folder: `reports/validation`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "expectations"
    pages.mkdir(parents=True)
    names = []
    view = DefaultJinjaPageView()  # one for all pages: it compiles its templates on first use
    for number, run in enumerate(runs, start=1):
        names.append(f"expectations/{number:02d}-{run.suite}.html")
        (folder / names[-1]).write_text(_page(run, view), encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    most = max((day["events"] for day in summary["days"]), default=0)
    (folder / "index.html").write_text(template.render(run=summary, pages=names, most=most), encoding="utf-8")


def _page(run: SuiteRun, view: DefaultJinjaPageView) -> str:
    content = ValidationResultsPageRenderer().render(run.result)
    html = str(view.render(content))
    html = _REMOTE_IMAGE.sub("", _REMOTE.sub("", html))
    html = html.replace("</head>", f"<style>{_PAGE_STYLE}</style></head>", 1)
    return re.sub(r"(<body[^>]*>)", rf"\1{_BACK}", html, count=1)


# The few classes of Bootstrap that Great Expectations' pages lean on.
_PAGE_STYLE = """
* { box-sizing: border-box; }
body { font: 14px/1.5 system-ui, sans-serif; color: #1c2430; background: #f6f8fa; margin: 0; }
.mrse-back { padding: 12px 24px; margin: 0; } a { color: #0b5cad; }
.row { display: flex; flex-wrap: wrap; } .container-fluid { padding: 0 24px 48px; }
.col-md-10, .col-lg-10 { flex: 1 1 0; min-width: 0; } .col-12 { width: 100%; } .col-6 { padding-right: 32px; }
.card, .ge-section { background: #fff; border: 1px solid #dfe5ec; border-radius: 10px; }
.card, .ge-section { margin: 10px 0; padding: 12px 16px; }
.card .card { border: 0; padding: 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid #dfe5ec; }
h1, h2, h3, h4, h5, h6 { font-size: 16px; margin: 8px 0; }
.text-success { color: #1a7f4b; } .text-danger { color: #b3261e; } .text-warning { color: #9a6700; }
.badge { background: #eef2f6; border-radius: 4px; padding: 1px 5px; }
.fa-check-circle::before { content: "\\2713"; } .fa-times::before { content: "\\2717"; }
.fa-exclamation-triangle::before { content: "!"; font-weight: 700; }
nav.navbar, .navbar, .modal, .btn, footer, .cooltip .top, .navbar-collapse, .col-lg-2 { display: none; }
.ge-section a[href$=".html"] { color: inherit; text-decoration: none; pointer-events: none; }
.collapse { display: block; } ul { padding-left: 18px; } .nav { list-style: none; padding: 0; }
"""
