"""The peer of the benchmarks: sentence-transformers over a BERT of Light-Bert's size and vocabulary, random weights.

pip install --constraint constraints.txt -e '.[bench]'
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from mrse.config import ModelConfig
from mrse.features.text import CLS, MASK, PAD, SEP, UNK, Tokenizer


def quiet() -> None:
    """No progress bars and no advice, of which a short training makes more than it makes figures."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def same_bert(tokenizer: Path, config: ModelConfig, folder: Path) -> Path:
    """Write a BERT as large as Light-Bert over our tokeniser, as a Hugging Face model.

    Args:
        tokenizer: our `tokenizer.json`.
        config: whose sizes it takes.
        folder: to write.
    """
    bert = transformers.BertConfig(
        vocab_size=Tokenizer.load(tokenizer).vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=2 * config.hidden,
        max_position_embeddings=max(config.query_length, config.title_length),
    )
    transformers.BertModel(bert).save_pretrained(folder)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )
    words.save_pretrained(folder)
    return folder


def sentence_transformer(source: Path, length: int, device: str = "cpu") -> SentenceTransformer:
    """A Hugging Face encoder with mean pooling; at most `length` pieces of a text are read."""
    transformer = Transformer(str(source), max_seq_length=length)
    pooling = Pooling(transformer.get_embedding_dimension())
    return SentenceTransformer(modules=[transformer, pooling], device=device)


def trainer(
    model: SentenceTransformer,
    pairs: tuple[Sequence[str], Sequence[str]],
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    bfloat16: bool,
    no_duplicates: bool = False,
    seed: int = 0,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> SentenceTransformerTrainer:
    """Its own trainer with its own collation, and MultipleNegativesRankingLoss.

    Args:
        model: trained in place.
        pairs: queries, and the text of the item that each led to.
        folder: for what the trainer writes.
        no_duplicates: its batch sampler that keeps a text from being its own negative; slower.
    """
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=steps // 20,
        batch_sampler=BatchSamplers.NO_DUPLICATES if no_duplicates else BatchSamplers.BATCH_SAMPLER,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        bf16=bfloat16,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"query": list(pairs[0]), "item": list(pairs[1])}),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=list(callbacks),
    )
