"""The encoders as ONNX graphs, for serving without torch and without the classes of the model (`mrse.model.exported`).

ONNX and not `torch.export`: loading a `.pt2` archive may unpickle, an ONNX file is data alone.

Letters of a graph's inputs name their sizes. Free: B rows, L word pieces, W words, U distinct words, M remembered
things. Fixed by the model: G n-grams of a word, T image tokens, V image feature size, E experts, H hidden, D size of
the vectors.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.export import Dim

from mrse.jsonfile import write_json
from mrse.model.encode import inference
from mrse.model.exported import FORMAT, ITEM_GRAPH, QUERY_GRAPH, SETTINGS
from mrse.model.history import Memory
from mrse.model.inputs import Texts
from mrse.model.retriever import Retriever
from mrse.model.towers import Fused, Mrse

_FREE = "BLWUM"
_OUTPUTS = ("vector_BD", "preference_BE", "part_BEH")
_OPSET = 20


def export_encoders(retriever: Retriever, folder: Path, int8_items: bool = False) -> None:
    """Write both encoders and what they need beside them; what was in `folder` goes. Takes some 20 s.

    Args:
        retriever: saved or loaded, so that it has a fingerprint.
        folder: gets `query.onnx`, `item.onnx`, `tokenizer.json`, `subword.json` and `export.json`, whole or not at all.
        int8_items: weights of the item encoder's linear layers in 8 bits, per output, and their inputs scaled as they
            come; texts go through it about twice as fast. One query gains nothing by it, so queries stay as they are.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    texts = _example_texts(retriever)
    with inference(retriever.model), _quiet():
        _write(_QueryGraph(retriever.model), texts | _example_shoppers(retriever), partial / QUERY_GRAPH)
        pictures = _example_pictures(retriever) if retriever.reads_images else {}
        _write(_ItemGraph(retriever.model), texts | pictures | _example_queries(retriever), partial / ITEM_GRAPH)
    if int8_items:
        _quantise(partial / ITEM_GRAPH)
    for name in ("tokenizer.json", "subword.json"):
        shutil.copyfile(retriever.assets / name, partial / name)
    write_json(partial / SETTINGS, _settings(retriever))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


class _QueryGraph(nn.Module):
    def __init__(self, model: Mrse) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_BL: Tensor,
        inside_BL: Tensor,
        words_BW: Tensor,
        grams_UG: Tensor,
        memory_BMEH: Tensor,
        known_BM: Tensor,
        action_BM: Tensor,
        age_BM: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        part_BEH = self.model.encode_texts(Texts(tokens_BL, inside_BL, words_BW, grams_UG)).half()
        memory = Memory(memory_BMEH.float(), known_BM, action_BM, age_BM)
        return _outputs(self.model.fuse_queries(part_BEH.float(), memory), part_BEH)


class _ItemGraph(nn.Module):
    def __init__(self, model: Mrse) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_BL: Tensor,
        inside_BL: Tensor,
        words_BW: Tensor,
        grams_UG: Tensor,
        memory_BMEH: Tensor,
        known_BM: Tensor,
        weight_BM: Tensor,
        images_BTV: Tensor | None = None,
        pictured_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        texts = Texts(tokens_BL, inside_BL, words_BW, grams_UG)
        shown_BTV = None if images_BTV is None else images_BTV.float()
        part_BEH = self.model.encode_items(texts, shown_BTV, pictured_B).half()
        memory = Memory(memory_BMEH.float(), known_BM, weight_BM=weight_BM)
        return _outputs(self.model.fuse_items(part_BEH.float(), memory), part_BEH)


def _outputs(fused: Fused, part_BEH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return fused.vector_BD, fused.preference_BE, part_BEH


def _write(graph: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    longest = inputs["tokens_BL"].shape[1]
    sizes = {letter: Dim(letter, max=longest) if letter == "L" else Dim(letter) for letter in _FREE}
    free = {
        name: {place: sizes[letter] for place, letter in enumerate(name.rpartition("_")[2]) if letter in sizes}
        for name in inputs
    }
    program: Any = torch.onnx.export(
        graph.eval(),
        kwargs=inputs,
        dynamo=True,
        dynamic_shapes=free,
        input_names=list(inputs),
        output_names=list(_OUTPUTS),
        opset_version=_OPSET,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def _quantise(path: Path) -> None:
    graph = onnx.load(path)
    del graph.graph.value_info[:]  # shapes of weights that the quantiser turns round; it infers them again
    linear = ["MatMul", "Gemm"]
    quantize_dynamic(graph, path, op_types_to_quantize=linear, per_channel=True, weight_type=QuantType.QInt8)


def _example_texts(retriever: Retriever) -> dict[str, Tensor]:
    """Three texts as long as the model takes; no size is 1, which an export would take for a constant."""
    config = retriever.model.config
    length = max(config.query_length, config.title_length)
    texts = retriever.item_texts([f"{'ab ' * length}", "c d", ""], [None] * 3)
    return dict(vars(texts.batch(torch.arange(3).numpy())))


def _example_shoppers(retriever: Retriever) -> dict[str, Tensor]:
    code_BM = torch.zeros(3, 2, dtype=torch.int64)
    return _example_memory(retriever) | {"action_BM": code_BM, "age_BM": code_BM.clone()}


def _example_queries(retriever: Retriever) -> dict[str, Tensor]:
    return _example_memory(retriever) | {"weight_BM": torch.ones(3, 2)}


def _example_memory(retriever: Retriever) -> dict[str, Tensor]:
    E, H = len(retriever.experts), retriever.model.config.hidden
    known_BM = torch.tensor([[True, True], [True, False], [False, False]])
    return {"memory_BMEH": torch.zeros(3, 2, E, H, dtype=torch.float16), "known_BM": known_BM}


def _example_pictures(retriever: Retriever) -> dict[str, Tensor]:
    T, V = retriever.settings["image_tokens"], retriever.settings["image_dim"]
    images_BTV = torch.zeros(3, T, V, dtype=torch.float16)
    return {"images_BTV": images_BTV, "pictured_B": torch.tensor([True, False, True])}


def _settings(retriever: Retriever) -> dict[str, Any]:
    config = retriever.model.config
    return {
        "format": FORMAT,
        "fingerprint": retriever.fingerprint,
        "dim": retriever.dim,
        "hidden": config.hidden,
        "experts": list(retriever.experts),
        "query_length": config.query_length,
        "title_length": config.title_length,
        "history_length": config.history_length,
        "image_tokens": retriever.settings["image_tokens"],
        "image_dim": retriever.settings["image_dim"],
        "reads_images": retriever.reads_images,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on libraries that it does without, and on its own internals, to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
