"""A contact sheet of search results: one HTML file with the pictures inside, to be opened or mailed as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from mrse.data.images import MAX_PIXELS, ImageProblem, ImageStore, decode
from mrse.errors import DataError
from mrse.jsonfile import write_text
from mrse.serving.examples import Question
from mrse.serving.recall import Hit, Reader

_SIDE = 240  # pixels, at most; a page shows a picture about 200 wide


class Thumbnails:
    """Pictures as small JPEG data URIs; one that cannot be read is None, as on the shop's own page."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._made: dict[str, str | None] = {}

    def of(self, ref: str | None) -> str | None:
        """The data URI of a picture by its reference."""
        if ref is None:
            return None
        if ref not in self._made:
            self._made[ref] = self._make(ref)
        return self._made[ref]

    def _make(self, ref: str) -> str | None:
        try:
            image = decode(self._store.read(ref), MAX_PIXELS)
        except ImageProblem:
            return None
        image.thumbnail((_SIDE, _SIDE))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def write_page(
    reader: Reader, questions: Sequence[Question], answers: Sequence[Sequence[Hit]], workspace: Path, out: Path
) -> None:
    """Write the contact sheet.

    Args:
        reader: gives what is live, and the items in a shopper's history.
        questions, answers: what was asked and found, of one length.
        workspace: what a relative image root starts from.
        out: the HTML file; its folder is made when missing.
    """
    pair = reader.pair
    thumbnails = Thumbnails(ImageStore(pair.stamp.image_root, workspace))
    pictures = reader.pictures([item_id for question in questions for item_id in question.recent])
    environment = Environment(
        loader=PackageLoader("mrse.serving", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    html = environment.get_template("page.html.j2").render(
        collection=pair.collection,
        stamp=pair.stamp,
        answers=[
            {
                "text": question.text,
                "user": question.user,
                "recent": [uri for i in question.recent if (uri := thumbnails.of(pictures.get(i)))],
                "hits": [_shown(hit, thumbnails) for hit in hits],
            }
            for question, hits in zip(questions, answers, strict=True)
        ],
    )
    try:
        write_text(out, html)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from None


def _shown(hit: Hit, thumbnails: Thumbnails) -> dict[str, Any]:
    return {
        "title": hit.title,
        "price": "" if hit.price is None else f"{hit.price:,.2f}",
        "score": hit.score,
        "picture": thumbnails.of(hit.image),
    }
