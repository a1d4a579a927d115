"""Small instances of real models, with fresh weights: `model_zoo.list()[0].build()`.

Hidden size 64, two layers, four heads, so that every structure has dimensions to divide. Nothing is
downloaded: the models are built from their configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN = 64
MLP = 256
LAYERS = 2
HEADS = 4
VOCABULARY = 128
CLASSES = 10
BATCH = 2
TOKENS = 12


@dataclass(frozen=True)
class Entry:
    """One model: `build()` returns it in eval mode, `inputs()` a tuple of arguments or a dict."""

    name: str
    make: Callable[[], nn.Module]
    make_inputs: Callable[[], tuple | dict[str, Any]]

    def build(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, the same for the same seed, with no bias or norm left trivial."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    def inputs(self, seed: int = 0) -> tuple | dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_inputs()

    def run(self, model: nn.Module, seed: int = 0) -> torch.Tensor:
        """The model's main output on the example inputs."""
        inputs = self.inputs(seed)
        return main_tensor(model(**inputs) if isinstance(inputs, dict) else model(*inputs))

    def loss(self, model_output: Any) -> torch.Tensor:
        """A scalar that every projection's gradient depends on."""
        tensor = main_tensor(model_output).flatten()
        pooled = getattr(model_output, "pooler_output", None)
        if pooled is not None:
            tensor = torch.cat([tensor, pooled.flatten()])
        target = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        return F.mse_loss(tensor, target)

    def __str__(self) -> str:
        return self.name


def main_tensor(model_output: Any) -> torch.Tensor:
    """The logits, or the last hidden state, or the first tensor of what a model returned."""
    if isinstance(model_output, torch.Tensor):
        return model_output
    for name in ("logits", "last_hidden_state"):
        if hasattr(model_output, name):
            return getattr(model_output, name)
    return model_output[0]


def configuration(name: str, **options: Any) -> Any:
    """A transformers configuration: its classes take more options than their signatures say."""
    import transformers

    return getattr(transformers, name)(**options)


def vit() -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(
        configuration(
            "ViTConfig",
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=MLP,
            image_size=16,
            patch_size=4,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def gpt2(attention: str = "sdpa") -> nn.Module:
    import transformers

    return transformers.GPT2LMHeadModel(
        configuration(
            "GPT2Config",
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
        )
    )


def bert_config(attention: str = "sdpa") -> Any:
    return configuration(
        "BertConfig",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        max_position_embeddings=32,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )


def bert() -> nn.Module:
    import transformers

    return transformers.BertModel(bert_config())


def bert_classifier() -> nn.Module:
    import transformers

    return transformers.BertForSequenceClassification(bert_config())


def bert_masked_lm(attention: str = "sdpa") -> nn.Module:
    import transformers

    return transformers.BertForMaskedLM(bert_config(attention))


def llama(attention: str = "sdpa") -> nn.Module:
    """Rotary positions, two key/value heads for four query heads, SwiGLU, an untied head."""
    import transformers

    return transformers.LlamaForCausalLM(
        configuration(
            "LlamaConfig",
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=192,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
        )
    )


def t5(feed_forward: str = "relu") -> nn.Module:
    import transformers

    return transformers.T5ForConditionalGeneration(
        configuration(
            "T5Config",
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            d_kv=HIDDEN // HEADS,
            d_ff=MLP,
            num_layers=LAYERS,
            num_heads=HEADS,
            dropout_rate=0.0,
            feed_forward_proj=feed_forward,
            use_cache=False,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def t5_gated() -> nn.Module:
    return t5("gated-gelu")


def bart() -> nn.Module:
    import transformers

    return transformers.BartForConditionalGeneration(
        configuration(
            "BartConfig",
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=MLP,
            decoder_ffn_dim=MLP,
            max_position_embeddings=32,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            use_cache=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )


class TorchEncoder(nn.Module):
    """torch's own encoder between an embedding and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        layer = nn.TransformerEncoderLayer(
            HIDDEN, HEADS, MLP, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS)
        self.classifier = nn.Linear(HIDDEN, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encoder(self.embedding(tokens)).mean(dim=1))


class SelfAndCrossAttention(nn.Module):
    """Two nn.MultiheadAttention: one packed, one that attends to features of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.attend_self = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        self.attend_other = nn.MultiheadAttention(HIDDEN, HEADS, kdim=128, vdim=192)
        self.classifier = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        x = x + self.attend_self(x, x, x, need_weights=False)[0]
        attended, _ = self.attend_other(
            self.norm(x).transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        )
        return self.classifier((x + attended.transpose(0, 1)).mean(dim=1))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(HIDDEN)
        self.token_mlp = nn.Sequential(
            nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens)
        )
        self.channel_norm = nn.LayerNorm(HIDDEN)
        self.channel_mlp = nn.Sequential(nn.Linear(HIDDEN, MLP), nn.GELU(), nn.Linear(MLP, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.channel_norm(x))


class Mixer(nn.Module):
    """MLP-Mixer (arXiv:2105.01601) on 16 x 16 images cut into 64 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, HIDDEN, kernel_size=2, stride=2)
        self.blocks = nn.Sequential(*[MixerBlock(tokens=64) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(HIDDEN, MLP),
        nn.ReLU(),
        nn.Linear(MLP, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def token_ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, TOKENS))


def image_inputs() -> dict[str, Any]:
    return {"pixel_values": torch.randn(BATCH, 3, 16, 16)}


def text_inputs() -> dict[str, Any]:
    """Token ids with a padding mask that hides the end of the last sequence."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    mask[-1, -3:] = 0
    return {"input_ids": token_ids(), "attention_mask": mask}


def causal_inputs() -> dict[str, Any]:
    return {"input_ids": token_ids()}


def sequence_to_sequence_inputs() -> dict[str, Any]:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids()[:, :8]}


def attention_inputs() -> tuple:
    return (
        torch.randn(BATCH, TOKENS, HIDDEN),
        torch.randn(BATCH, 7, 128),
        torch.randn(BATCH, 7, 192),
    )


ENTRIES = (
    Entry("vit", vit, image_inputs),
    Entry("gpt2", gpt2, causal_inputs),
    Entry("bert", bert, text_inputs),
    Entry("bert_classifier", bert_classifier, text_inputs),
    Entry("bert_masked_lm", bert_masked_lm, text_inputs),
    Entry("llama", llama, causal_inputs),
    Entry("t5", t5, sequence_to_sequence_inputs),
    Entry("t5_gated", t5_gated, sequence_to_sequence_inputs),
    Entry("bart", bart, sequence_to_sequence_inputs),
    Entry("torch_encoder", TorchEncoder, lambda: (token_ids(),)),
    Entry("multihead_attention", SelfAndCrossAttention, attention_inputs),
    Entry("mixer", Mixer, lambda: (torch.randn(BATCH, 3, 16, 16),)),
    Entry("mlp", mlp, lambda: (torch.randn(BATCH, HIDDEN),)),
)


def list() -> tuple[Entry, ...]:
    """Every model, for `pytest.mark.parametrize("entry", model_zoo.list(), ids=str)`."""
    return ENTRIES


def get(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == name)
