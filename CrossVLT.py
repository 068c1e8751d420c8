"""CrossVLT: cross-aware early fusion with stage-divided vision and language encoders.

Cho et al., IEEE TMM 2023, arXiv 2408.07539. `SegModel.forward` runs the stages in turn, from the image and the sentence
to the mask. The tables of `lib/variants.py` contain all dimensions. The networks that the paper compares with are the
same stages with fewer cross-attentions, see `FUSIONS`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from bert.language_stage import LanguageStage, LanguageStage1, TextOnlyStage
from bert.layers import BertConfig
from lib.contents import CONFIG
from lib.contracts import Output
from lib.network.decoder import Decoder, SentenceDecoder
from lib.network.fusion import NoFusion, NoGate
from lib.network.no_target import NoTargetHead
from lib.network.precision import at_least_float32
from lib.network.resize import upsample
from lib.network.unfilled import Unfilled
from lib.network.vision_stage import VisionOutput, VisionStage
from lib.schema import parse_json
from lib.variants import BERT_VARIANTS, FUSIONS, SWIN_VARIANTS, BertVariant, Options, SwinVariant, check_name
from lib.weights.card import MODEL_CARD

if TYPE_CHECKING:
    from lib.network.vision_stage import VisionStages

LaterLanguage: TypeAlias = LanguageStage | TextOnlyStage  # stages 2–4


ALIGN_DIM = 256
PADDING_BIAS = -1e4  # added to the attention scores of padding


class SegModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="crossvlt",
    pipeline_tag="image-segmentation",
    license="mit",
    tags=["referring-image-segmentation"],
    model_card_template=MODEL_CARD,
):
    """The CrossVLT network. Its initial weights are random; it reads no file.

    swin_type: nano, tiny, small, base or large. bert_type: nano or base. vocab_size: rows of the word embedding.
    dropout: probability in the language stages, in [0, 1). drop_path: rate of the last Swin block in [0, 1), rising
    linearly from 0. checkpointing: recompute the activations of the vision stages in the backward pass: less memory,
    more time, the same results. freeze_bert: do not train BERT's layers, which are in language stage 1.
    train_embeddings: train BERT's embeddings. train_temperature: train the alignment temperatures. fusion: cross,
    vision, late or none, see `FUSIONS`. alignment: compute alignment maps of pixels and sentence in training.
    no_target_head: also predict whether the sentence means anything in the image. align_bias: add a trained bias to
    each stage's alignment map. Raises ValueError for an unknown type or fusion.

    `save_pretrained(folder)` writes weights and these arguments, `SegModel.from_pretrained(folder)` reads them.
    `push_to_hub` and names on the hub work if there is internet access.
    """

    def __init__(
        self,
        swin_type: str = "base",
        bert_type: str = "base",
        *,
        vocab_size: int = 30522,
        dropout: float = 0.1,
        drop_path: float = 0.3,
        checkpointing: bool = False,
        freeze_bert: bool = False,
        train_embeddings: bool = False,
        train_temperature: bool = False,
        fusion: str = "cross",
        alignment: bool = True,
        no_target_head: bool = False,
        align_bias: bool = False,
    ) -> None:
        super().__init__()
        choices = (("Swin type", swin_type, SWIN_VARIANTS), ("BERT type", bert_type, BERT_VARIANTS))
        for kind, name, table in (*choices, ("fusion", fusion, FUSIONS)):
            check_name(kind, name, table)
        swin, bert = SWIN_VARIANTS[swin_type], bert_config(BERT_VARIANTS[bert_type], vocab_size, dropout)
        stages = build_vision_stages(swin, bert.hidden_size, drop_path, checkpointing=checkpointing)
        self.backbone = cast("VisionStages", stages)
        dims = [swin.embed_dim * 2**index for index in range(4)]
        self.lang_stage1 = LanguageStage1(bert, BERT_VARIANTS[bert_type].num_layers, ALIGN_DIM)
        self.lang_stage1.encoder.layer.requires_grad_(not freeze_bert)
        # Embeddings are not trained by default: the released code has them in no optimizer group.
        self.lang_stage1.embeddings.requires_grad_(train_embeddings)
        self.lang_stage2: LaterLanguage = LanguageStage(bert, dims[1], ALIGN_DIM)
        self.lang_stage3: LaterLanguage = LanguageStage(bert, dims[2], ALIGN_DIM)
        self.lang_stage4: LaterLanguage = LanguageStage(bert, dims[3], ALIGN_DIM)
        self.fusion_config = FUSIONS[fusion]
        if self.fusion_config.language_to_vision_stages:
            self.classifier: Decoder | SentenceDecoder = Decoder(dims, hidden_dim=4 * swin.embed_dim)
        else:
            self.classifier = SentenceDecoder(dims, hidden_dim=4 * swin.embed_dim, sentence_dim=bert.hidden_size)
        # The temperatures keep their initial value by default: the released code leaves them out of the optimizer.
        self.temp: nn.Parameter | None = nn.Parameter(torch.ones(4), requires_grad=train_temperature)
        self.align_bias: nn.Parameter | None = nn.Parameter(torch.zeros(4)) if align_bias else None
        self._replace_unused_modules(bert)
        if not alignment:
            self._remove_alignment()
        # Built last, so that the random initial weights of all other modules are the same with and without it.
        self.no_target_head = NoTargetHead(bert.hidden_size, dims[3]) if no_target_head else None

    @classmethod
    def unfilled(cls, **options: Unpack[Options]) -> SegModel:
        """Return a network for weights that are loaded next: it draws none, and has what the memory holds.

        options: those of `SegModel`. Saves three seconds for Swin base and BERT base.
        """
        with Unfilled():
            return cls(**options)

    def _replace_unused_modules(self, bert: BertConfig) -> None:
        """Replace the modules that this fusion variant does not use.

        The full network is built first, so that all variants have the same initial weights for the same seed, except in
        language stages 2–4, which differ between the variants. Building only what a variant uses would draw fewer
        random numbers and so change the initial weights of every seed.
        """
        if not self.fusion_config.vision_to_language:
            self.lang_stage2 = TextOnlyStage(bert, ALIGN_DIM)
            self.lang_stage3 = TextOnlyStage(bert, ALIGN_DIM)
            self.lang_stage4 = TextOnlyStage(bert, ALIGN_DIM)
        for index in {0, 1, 2, 3} - set(self.fusion_config.language_to_vision_stages):
            layers = self.backbone[index].layers
            layers.attn1, layers.linear1 = NoFusion(), NoGate()
            if layers.downsample is not None:
                layers.attn2, layers.linear2 = NoFusion(), NoGate()

    def _remove_alignment(self) -> None:
        """Remove the projections and temperatures of alignment."""
        for module in (*(stage.layers for stage in self.backbone), self.lang_stage1.encoder, *self._languages()[1:]):
            del module.proj
        self.temp = self.align_bias = None

    def start_alignment(self, temperature: float, prior: float | None) -> None:
        """Set the initial temperatures, and the bias if there is one: to the logit of `prior`, a share in (0, 1)."""
        with torch.no_grad():
            if self.temp is not None:
                self.temp.fill_(temperature)
            if self.align_bias is not None and prior is not None:
                self.align_bias.fill_(math.log(prior / (1 - prior)))

    def alignment_scale(self) -> tuple[tuple[float, float], ...]:
        """Return temperature and bias of each stage's alignment map: a map is cosine / temperature + bias.

        () for a network without alignment.
        """
        if self.temp is None:
            return ()
        biases = torch.zeros(4) if self.align_bias is None else self.align_bias
        return tuple(zip(self.temp.tolist(), biases.tolist(), strict=True))

    def forward(
        self, image: Tensor, token_ids: Tensor, attention_mask: Tensor, *, with_alignment: bool = False
    ) -> Output:
        """Segment the object that each sentence refers to.

        image: (B, 3, H, W) float, ImageNet-normalised, any size. token_ids: (B, N) int64 WordPiece ids with [CLS]
        first. attention_mask: (B, N), 1 for tokens and 0 for padding. with_alignment: also return the alignment maps in
        evaluation; a network without alignment has none. Returns `Output`.
        """
        padding_bias = (1 - attention_mask.to(image.dtype))[:, None, None, :] * PADDING_BIAS  # B, 1, 1, N

        # both encoders, four stages each
        encode = self._encode_in_turn if self.fusion_config.vision_to_language else self._encode_text_first
        stages, texts = encode(image, token_ids, padding_bias)

        # decode the mask from the four skips; it is upsampled in float32, also under autocast
        skips = [stage.skip.permute(0, 3, 1, 2) for stage in stages]
        if isinstance(self.classifier, SentenceDecoder):
            skips = self.classifier.join(skips, texts[-1][:, 0])
        logits = upsample(at_least_float32(self.classifier(skips)), image.shape[-2:])

        no_target = None
        if self.no_target_head is not None:
            no_target = self.no_target_head(texts[-1], attention_mask, stages[-1].skip)
        if self.temp is None or not (self.training or with_alignment):
            return Output(logits, (), no_target)
        return Output(logits, self._alignment([stage.pixels for stage in stages], texts, self.temp), no_target)

    if TYPE_CHECKING:  # PyTorch does not type the result of calling a module
        __call__ = forward

    def _encode_in_turn(
        self, image: Tensor, token_ids: Tensor, padding_bias: Tensor
    ) -> tuple[list[VisionOutput], list[Tensor]]:
        """Run language and vision stages alternately; each attends to the last output of the other encoder.

        Returns the outputs of the vision stages and of the language stages, (B, N, D) each.
        """
        texts = [self.lang_stage1(token_ids, padding_bias)]
        stages = [self.backbone[0](image, texts[0], padding_bias)]
        for language, vision in zip(self._languages()[1:], list(self.backbone)[1:], strict=True):
            visual = stages[-1].next
            assert visual is not None  # only the last stage has no `next`
            texts.append(language(texts[-1], visual.flatten(1, 2), padding_bias))
            stages.append(vision(visual, texts[-1], padding_bias))
        return stages, texts

    def _encode_text_first(
        self, image: Tensor, token_ids: Tensor, padding_bias: Tensor
    ) -> tuple[list[VisionOutput], list[Tensor]]:
        """Run all language stages, then all vision stages; returns the same as `_encode_in_turn`."""
        texts = [self.lang_stage1(token_ids, padding_bias)]
        for language in self._languages()[1:]:
            texts.append(language(texts[-1], padding_bias))
        stages = [self.backbone[0](image, texts[-1], padding_bias)]
        for vision in list(self.backbone)[1:]:
            visual = stages[-1].next
            assert visual is not None
            stages.append(vision(visual, texts[-1], padding_bias))
        return stages, texts

    def _alignment(self, pixels: list[Tensor], texts: list[Tensor], temperatures: Tensor) -> tuple[Tensor, ...]:
        """Return the similarity of all pixels (B, H, W, C) and the sentence (B, N, D), for each stage.

        temperatures: (4,). The maps are (B, 1, H, W) each.
        """
        maps = []
        for index, (vision, language) in enumerate(zip(self.backbone, self._languages(), strict=True)):
            visual = vision.layers.proj(pixels[index])  # B, H, W, 256
            sentence = language.project(texts[index])[:, None, None, :]
            # always in float32, like the losses that read it
            pair = at_least_float32(visual), at_least_float32(sentence)
            similarity = F.cosine_similarity(*pair, dim=-1).unsqueeze(1)  # B, 1, H, W
            logits = similarity / temperatures[index]
            maps.append(logits if self.align_bias is None else logits + self.align_bias[index])
        return tuple(maps)

    def _languages(self) -> tuple[LanguageStage1, LaterLanguage, LaterLanguage, LaterLanguage]:
        return self.lang_stage1, self.lang_stage2, self.lang_stage3, self.lang_stage4

    @property
    def options(self) -> Options:
        """The constructor's arguments of this network, by name."""
        assert isinstance(self._hub_mixin_config, dict)  # set by the mixin
        return cast(Options, dict(self._hub_mixin_config))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> SegModel:  # type: ignore[explicit-any]  # the hub's
        """Return the network in a folder or on the hub, see `PyTorchModelHubMixin`.

        Raises UserError if the folder's config.json is not one of this network.
        """
        config = Path(pretrained_model_name_or_path) / "config.json"
        if config.is_file():
            parse_json(config.read_bytes(), CONFIG, config, "no configuration of this network")
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> SegModel:  # type: ignore[explicit-any]  # the hub's
        """Be strict by default: missing weights would stay random."""
        network: SegModel = super()._from_pretrained(strict=strict, **kwargs)
        return network

    def generate_model_card(self, *, scores: str = "", recipe: str = "") -> ModelCard:
        """Return the README of a saved network; scores, recipe: Markdown."""
        parameters = f"{sum(parameter.numel() for parameter in self.parameters()):,}"
        return super().generate_model_card(**self.options, parameters=parameters, scores=scores, recipe=recipe)


def build_vision_stages(swin: SwinVariant, text_dim: int, drop_path: float, *, checkpointing: bool) -> nn.ModuleList:
    """Return the four vision stages; drop_path: probability of the last block, rising linearly from 0."""
    rates = torch.linspace(0, drop_path, sum(swin.depths), device="cpu").split(swin.depths)
    return nn.ModuleList(
        VisionStage(
            index,
            embed_dim=swin.embed_dim,
            num_heads=swin.num_heads[index],
            window_size=swin.window_size,
            drop_path=rates[index].tolist(),
            text_dim=text_dim,
            align_dim=ALIGN_DIM,
            last=index == 3,
            checkpointing=checkpointing,
        )
        for index in range(4)
    )


def bert_config(bert: BertVariant, vocab_size: int, dropout: float) -> BertConfig:
    """Return the configuration of BERT's layers."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=bert.hidden_size,
        num_heads=bert.num_heads,
        intermediate_size=bert.intermediate_size,
        max_positions=bert.max_positions,
        dropout=dropout,
    )
