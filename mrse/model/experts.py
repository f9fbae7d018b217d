"""The three light experts (LMoE, arXiv 2408.14968, section "Multi-modality extraction"), shared by both towers.

Shapes: B texts, L word pieces, T image tokens, V image feature size, S = T + L, P real (unpadded) tokens of a batch,
W words, U distinct words, G n-grams of a word, R distinct n-grams, A attention heads, E experts, H hidden size, I items
of a batch. A tower is 0 (query) or 1 (item); the rows of a batch are queries first, then items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrse.config import ModelConfig
from mrse.model.dropout import Dropout
from mrse.model.inputs import Texts

TOWERS = 2
_TOKENS, _ROWS, _PLACES, _LEAST = 128, 32, 8, 16
_FAR = 5.0  # standard deviations
_GRAM_ROOT = 0.25


class Packing:
    """Real tokens of a padded batch as one flat list: linear layers do no work on padding.

    In training the list, and the batch that attention sees, are rounded up to a few sizes. oneDNN builds a bfloat16
    product anew for every shape that it has not met, which takes longer than the product; and a softmax of 15 numbers
    takes ten times as long as one of 16. Elsewhere a batch without padding is not moved at all.

    In an exported graph, whose shapes must not hang on values, and on a GPU, which would have to wait for them, padding
    is carried along (P = B * S) and only attention and the mean leave it out.

    Attributes:
        inside_BS: which tokens are real.
        bias_B11S: 0 where attention may look, else minus infinity; None: everywhere. B and S are rounded up.
    """

    def __init__(self, inside_BS: Tensor) -> None:
        self.inside_BS = inside_BS
        carried = torch.compiler.is_exporting() or inside_BS.device.type != "cpu"
        self._rounds = torch.is_grad_enabled() and not carried
        seen_BS = _rounded_up(inside_BS) if self._rounds else inside_BS
        self._shape = seen_BS.shape
        full = not carried and bool(seen_BS.all())
        self._given_P = None if full or carried else inside_BS.flatten().nonzero().squeeze(1)
        self._places_P = self._given_P
        if self._rounds and not full:
            self._places_P = seen_BS.flatten().nonzero().squeeze(1)
            seen_BS[len(inside_BS) :, 0] = True  # a row that sees nothing has no softmax
        self.bias_B11S = None if full else _bias(seen_BS)

    def enter(self, x_BSH: Tensor) -> Tensor:
        """`(B, S, H)`, as it was before rounding up, to `(P, H)`."""
        flat = x_BSH.flatten(0, 1)
        return flat if self._given_P is None else flat.index_select(0, self._given_P)

    def rounded(self, x_PH: Tensor) -> Tensor:
        """Zeros after the last token, up to a size that comes again."""
        return F.pad(x_PH, (0, 0, 0, -len(x_PH) % _TOKENS)) if self._rounds else x_PH

    def pack(self, x_BSH: Tensor) -> Tensor:
        """`(B, S, H)`, rounded up, to `(P, H)`, rounded up."""
        flat = x_BSH.flatten(0, 1)
        return self.rounded(flat if self._places_P is None else flat.index_select(0, self._places_P))

    def unpack(self, x_PH: Tensor) -> Tensor:
        """`(P, H)` to `(B, S, H)`, rounded up, anything in the padding."""
        B, S = self._shape
        if self._places_P is not None:
            tokens = x_PH[: len(self._places_P)]
            x_PH = x_PH.new_zeros(B * S, x_PH.shape[1]).index_copy(0, self._places_P, tokens)
        return x_PH.view(B, S, x_PH.shape[1])

    def mean(self, x_PH: Tensor) -> Tensor:
        """Mean over each row's real tokens, `(B, H)`, not rounded up; every row has at least one."""
        B, S = self.inside_BS.shape
        inside_BS1 = self.inside_BS[:, :, None]
        return (self.unpack(x_PH)[:B, :S] * inside_BS1).sum(dim=1) / inside_BS1.sum(dim=1)


def _rounded_up(inside_BS: Tensor) -> Tensor:
    B, S = inside_BS.shape
    return F.pad(inside_BS, (0, max(_LEAST - S, -S % _PLACES), 0, -B % _ROWS))


class Block(nn.Module):
    """One pre-norm transformer layer (Xiong et al. 2020)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm_feed = nn.LayerNorm(hidden)
        self.feed = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))

    def forward(self, x_PH: Tensor, packing: Packing) -> Tensor:
        """One layer over packed tokens, `(P, H)` to `(P, H)`."""
        qkv_BSH = packing.unpack(self.qkv(self.norm_attention(x_PH)))
        q, k, v = (self._heads(part_BSH) for part_BSH in qkv_BSH.chunk(3, dim=2))
        mixed_BSH = _attention(q, k, v, packing.bias_B11S).transpose(1, 2).flatten(2)
        x_PH = x_PH + self.out(packing.pack(mixed_BSH))
        fed: Tensor = x_PH + self.feed(self.norm_feed(x_PH))
        return fed

    def _heads(self, x_BSH: Tensor) -> Tensor:
        B, S, H = x_BSH.shape
        return x_BSH.view(B, S, self.heads, H // self.heads).transpose(1, 2)


def _bias(inside_BS: Tensor) -> Tensor:
    """What is added to attention's scores, `(B, 1, 1, S)`: in training a sum takes half as long as a mask."""
    zeros_BS = torch.zeros(inside_BS.shape, device=inside_BS.device)
    return zeros_BS.masked_fill(~inside_BS, float("-inf"))[:, None, None, :]


def _attention(q_BASK: Tensor, k_BASK: Tensor, v_BASK: Tensor, bias_B11S: Tensor | None) -> Tensor:
    if not (torch.is_grad_enabled() or torch.compiler.is_exporting()):
        bias = None if bias_B11S is None else bias_B11S.to(q_BASK.dtype)
        return F.scaled_dot_product_attention(q_BASK, k_BASK, v_BASK, attn_mask=bias)
    # Spelt out: at these lengths the fused CPU kernel's backward pass takes ten times as long; its export is clumsy.
    score_BASS, scale = q_BASK @ k_BASK.transpose(2, 3), q_BASK.shape[-1] ** -0.5
    score_BASS = score_BASS * scale if bias_B11S is None else torch.add(bias_B11S, score_BASS, alpha=scale)
    mixed_BASK: Tensor = score_BASS.softmax(dim=3).to(v_BASK.dtype) @ v_BASK
    return mixed_BASK


class LightTransformer(nn.Module):
    """A few layers, the mean over real tokens, and a projection to the experts' width where that is another."""

    def __init__(self, model: ModelConfig, layers: int) -> None:
        super().__init__()
        narrow = model.transformer_width
        self.blocks = nn.ModuleList(Block(narrow, model.heads) for _ in range(layers))
        self.norm = nn.LayerNorm(narrow)
        # Once, on the way in: random bits cost more than they help when every layer draws some.
        self.dropout = Dropout(model.dropout)
        self.out: nn.Module = nn.Identity()
        if narrow != model.hidden:
            wider = nn.Linear(narrow, model.hidden, bias=False)
            nn.init.orthogonal_(wider.weight)  # angles between texts stay what the layers made them
            self.out = wider

    def forward(self, x_BSH: Tensor, inside_BS: Tensor) -> Tensor:
        """`(B, S, H)` and its mask to `(B, H)`."""
        packing = Packing(inside_BS)
        x_PH = packing.rounded(self.dropout(packing.enter(x_BSH)))
        for block in self.blocks:
            x_PH = block(x_PH, packing)
        wide_BH: Tensor = self.out(packing.mean(self.norm(x_PH)))
        return wide_BH


class Pieces(nn.Module):
    """Word pieces, their places and their tower, embedded."""

    def __init__(self, vocab_size: int, length: int, hidden: int) -> None:
        super().__init__()
        self.token = _embedding(vocab_size, hidden)
        self.place = _embedding(length, hidden, scale=0.1)
        self.tower = _embedding(TOWERS, hidden, scale=0.1)

    def forward(self, tokens_BL: Tensor, tower_B: Tensor) -> Tensor:
        """`(B, L)` to `(B, L, H)`."""
        L = tokens_BL.shape[1]
        x_BLH: Tensor = self.token(tokens_BL) + self.place.weight[:L] + self.tower(tower_B)[:, None]
        return x_BLH


class LightBert(nn.Module):
    """Deep text, the paper's Light-Bert: word pieces through few layers, or through a given Hugging Face encoder."""

    def __init__(self, model: ModelConfig, vocab_size: int, encoder: nn.Module | None) -> None:
        super().__init__()
        if encoder is None:
            self.pieces = Pieces(vocab_size, max(model.query_length, model.title_length), model.transformer_width)
            self.layers = LightTransformer(model, model.layers)
        else:
            config: Any = encoder.config
            self.encoder = encoder
            self.out = nn.Linear(int(config.hidden_size), model.hidden, bias=False)
            nn.init.orthogonal_(self.out.weight)  # angles between texts stay what the encoder made them

    def given(self) -> Iterator[nn.Parameter]:
        """The parameters of a given encoder."""
        yield from self.encoder.parameters() if hasattr(self, "encoder") else ()

    def forward(self, texts: Texts, queries: int) -> Tensor:
        """A batch of texts, `queries` of them first, to `(B, H)`."""
        if not hasattr(self, "encoder"):
            pieces_BLH = self.pieces(texts.tokens_BL, tower_of(texts, queries))
            pooled_BH: Tensor = self.layers(pieces_BLH, texts.inside_BL)
            return pooled_BH
        # The given encoder works on padding too: queries are not made as long as titles.
        sides = [(0, queries), (queries, texts.tokens_BL.shape[0])]
        return torch.cat([self._by_given(texts.rows(start, stop)) for start, stop in sides if stop > start])

    def _by_given(self, texts: Texts) -> Tensor:
        state_BLH = self.encoder(input_ids=texts.tokens_BL, attention_mask=texts.inside_BL.long()).last_hidden_state
        inside_BL1 = texts.inside_BL[:, :, None]
        out_BH: Tensor = self.out((state_BLH * inside_BL1).sum(dim=1) / inside_BL1.sum(dim=1))
        return out_BH


class VBert(nn.Module):
    """The paper's VBert: image tokens from the frozen encoder pass a dense adaptor and meet the text's pieces."""

    image_mean_V: Tensor
    image_std_V: Tensor

    def __init__(self, model: ModelConfig, vocab_size: int, image_dim: int, image_tokens: int) -> None:
        super().__init__()
        self.image_tokens = image_tokens
        # Set once from the shop's pictures (`fit_pictures`): a palette and a ViT's outputs differ a hundredfold.
        self.register_buffer("image_mean_V", torch.zeros(image_dim))
        self.register_buffer("image_std_V", torch.ones(image_dim))
        self.adaptor = nn.Sequential(
            nn.Linear(image_dim, model.transformer_width),
            nn.GELU(),
            nn.Linear(model.transformer_width, model.transformer_width),
        )
        self.place = _embedding(image_tokens, model.transformer_width)
        self.stand_in = _embedding(TOWERS, model.transformer_width)
        self.pieces = Pieces(vocab_size, max(model.query_length, model.title_length), model.transformer_width)
        self.layers = LightTransformer(model, model.vbert_layers)

    @torch.no_grad()
    def fit_pictures(self, sample_PTV: Tensor) -> None:
        """Take mean and spread of each feature from a sample of the shop's pictures; nothing changes without one."""
        if len(sample_PTV):
            flat = sample_PTV.float().flatten(0, 1)
            self.image_mean_V.copy_(flat.mean(dim=0))
            self.image_std_V.copy_(flat.std(dim=0, correction=0).clamp(min=1e-3))

    def forward(self, texts: Texts, queries: int, images_ITV: Tensor | None, pictured_I: Tensor | None) -> Tensor:
        """Texts and pictures to `(B, H)`.

        Args:
            texts: of queries, then of items.
            queries: how many they are. A tower's own stand-in takes the place of a missing picture.
            images_ITV: the items' features of the frozen encoder; None when nothing in the batch has a picture.
            pictured_I: which items have one; the others' features are ignored.
        """
        tower_B = tower_of(texts, queries)
        text_BLH = self.pieces(texts.tokens_BL, tower_B)
        stand_in_B1H = self.stand_in(tower_B)[:, None]
        if images_ITV is None or pictured_I is None:
            inside_BS = F.pad(texts.inside_BL, (1, 0), value=True)
            pooled_BH: Tensor = self.layers(torch.cat([stand_in_B1H, text_BLH], dim=1), inside_BS)
            return pooled_BH
        even_ITV = ((images_ITV - self.image_mean_V) / self.image_std_V).clamp(-_FAR, _FAR)
        image_ITH = self.adaptor(even_ITV) + self.place.weight
        image_BTH = torch.where(pictured_I[:, None, None], image_ITH, stand_in_B1H[queries:])
        if queries:
            image_BTH = torch.cat([stand_in_B1H[:queries].expand(-1, self.image_tokens, -1), image_BTH])
        # One stand-in token is enough: the other places of a missing picture are padding.
        shown_BT = F.pad(pictured_I, (queries, 0))[:, None].repeat(1, self.image_tokens)
        shown_BT[:, 0] = True
        inside_BS = torch.cat([shown_BT, texts.inside_BL], dim=1)
        pooled_BH = self.layers(torch.cat([image_BTH.to(text_BLH.dtype), text_BLH], dim=1), inside_BS)
        return pooled_BH


class FtAtt(nn.Module):
    """The paper's FtAtt: a word is the sum of its hashed n-grams (FastText, Bojanowski et al. 2017), a text the
    attention-weighted mean of its words.

    The sum is divided by the fourth root of their number, so that a longer word, which says more, weighs more: a mean
    would let it weigh less. Attention starts from how rare a word is in the shop (`fit_words`): words too rare to learn
    from still count. Untrained, at a width that keeps n-grams apart, this ranks like BM25 (docs/results.md).
    """

    log_rarity_R: Tensor

    def __init__(self, hidden: int, buckets: int) -> None:
        super().__init__()
        self.register_buffer("log_rarity_R", torch.zeros(buckets + 1))
        # Query and item both weigh a word: a square root on either side lets its rarity count once, as in BM25.
        self.rarity = nn.Parameter(torch.tensor(0.5))
        self.grams = _embedding(buckets + 1, hidden)
        self.grams.weight.data[0] = 0.0
        self.score = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    @torch.no_grad()
    def fit_words(self, count_R: Tensor, texts: int) -> None:
        """Take the inverse document frequency of each whole word; `count_R` from `TextTable.word_counts`."""
        self.log_rarity_R.copy_(torch.log(torch.log1p(texts / (count_R.float() + 1.0))))

    def forward(self, texts: Texts) -> Tensor:
        """A batch of texts to `(B, H)`; zeros for a text without words.

        Each distinct word of the batch is embedded and scored once, then gathered.
        """
        word_UH = self._words(texts.grams_UG)
        # A word's first n-gram is the word itself.
        rarity_U = self.log_rarity_R[texts.grams_UG[:, 0]]
        score_U = self.score(word_UH).squeeze(1) + self.rarity * rarity_U
        inside_BW = texts.words_BW > 0
        score_BW = score_U[texts.words_BW].float().masked_fill(~inside_BW, -1e9)
        attention_BW = score_BW.softmax(dim=1) * inside_BW
        return torch.einsum("bw,bwh->bh", attention_BW, word_UH[texts.words_BW])

    def _words(self, grams_UG: Tensor) -> Tensor:
        """Each word's n-grams, summed and evened out, `(U, H)`."""
        inside_UG = (grams_UG > 0).to(self.grams.weight.dtype)
        scale_U1 = inside_UG.sum(dim=1, keepdim=True).clamp(min=1) ** -_GRAM_ROOT
        if not torch.is_grad_enabled():
            return ((inside_UG * scale_U1)[:, None, :] @ F.embedding(grams_UG, self.grams.weight)).squeeze(1)
        # A sparse gradient: only n-grams that occur are touched. Padding (0) is in row 0 and so the first distinct one.
        distinct_R, place_UG = torch.unique(grams_UG, return_inverse=True)
        gram_RH = F.embedding(distinct_R, self.grams.weight, sparse=True)
        return F.embedding_bag(place_UG, gram_RH, mode="sum", padding_idx=0) * scale_U1


class Experts(nn.Module):
    """The experts that are on, in a fixed order, each with a small projection of its own per tower.

    Attributes:
        names: E names, in the order of the outputs.
    """

    def __init__(
        self,
        model: ModelConfig,
        vocab_size: int,
        buckets: int,
        image_dim: int,
        image_tokens: int,
        text_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        built: dict[str, nn.Module] = {}
        if model.experts.vbert:
            built["vbert"] = VBert(model, vocab_size, image_dim, image_tokens)
        if model.experts.ftatt:
            built["ftatt"] = FtAtt(model.hidden, buckets)
        if model.experts.light_bert:
            built["light_bert"] = LightBert(model, vocab_size, text_encoder)
        self.names: tuple[str, ...] = tuple(built)
        self.each = nn.ModuleDict(built)
        # Zero: both towers start in one space, so that a title's own words find it before anything is learned.
        self.tower_TEHH = nn.Parameter(torch.zeros(TOWERS, len(built), model.hidden, model.hidden))

    def forward(
        self,
        texts: Texts,
        queries: int,
        images_ITV: Tensor | None = None,
        pictured_I: Tensor | None = None,
        vbert_texts: Texts | None = None,
    ) -> Tensor:
        """Outputs of all experts, L2-normalised, `(B, E, H)`.

        Args:
            texts: of queries, then of items, for every expert.
            queries: how many they are.
            images_ITV, pictured_I: see `VBert.forward`.
            vbert_texts: what VBert reads in place of `texts` (modality dropout).
        """
        outs = []
        for name, expert in self.each.items():
            if name == "vbert":
                outs.append(expert(texts if vbert_texts is None else vbert_texts, queries, images_ITV, pictured_I))
            elif name == "ftatt":
                outs.append(expert(texts))
            else:
                outs.append(expert(texts, queries))
        out_BEH = torch.stack([out.float() for out in outs], dim=1)
        sides = zip((out_BEH[:queries], out_BEH[queries:]), self.tower_TEHH, strict=True)
        moved_BEH = torch.cat([torch.einsum("beh,ehk->bek", side, own_EHH) for side, own_EHH in sides if side.shape[0]])
        return F.normalize(out_BEH + moved_BEH, dim=2)


def tower_of(texts: Texts, queries: int) -> Tensor:
    """Each row's tower, `(B,)`, where the first `queries` rows are queries."""
    rows = texts.tokens_BL.shape[0]
    return (torch.arange(rows, device=texts.tokens_BL.device) >= queries).long()


def _embedding(rows: int, hidden: int, scale: float = 1.0) -> nn.Embedding:
    table = nn.Embedding(rows, hidden)
    nn.init.normal_(table.weight, std=scale * float(hidden) ** -0.5)
    return table
