"""The pairs that read texts or images, or make images."""

from __future__ import annotations

from tests.answers import of_images, of_texts
from tests.models_bert_tf import of_pretraining, save_npz, tiny_google_bert, tiny_pretraining_bert
from tests.models_diffusion import TINY, of_diffusion, tiny_diffusers
from tests.models_encoder import tiny_bert, tiny_distilbert, tiny_torch_encoder
from tests.models_ldm import tiny_ldm
from tests.models_vit import tiny_timm_vit, tiny_vit
from tests.pair import Pair

ENCODERS = (
    Pair(
        "bert",
        "bert_to_torch_encoder",
        tiny_bert,
        "transformers:BertForSequenceClassification",
        "tests.models_encoder:TorchEncoder",
        251,
        answers=of_texts(251),
        without_effect=".self.key.bias",
    ),
    Pair(
        "bert",
        "bert_tf_to_hf",
        tiny_google_bert,
        "tests.models_bert_tf:GoogleBert",
        "transformers:BertForPreTraining",
        251,
        answers=of_pretraining(251),
        save=save_npz,
        without_effect="/key/bias",
    ),
    Pair(
        "bert",
        "bert_tf_to_hf",
        tiny_pretraining_bert,
        "transformers:BertForPreTraining",
        "tests.models_bert_tf:GoogleBert",
        241,
        reverse=True,
        answers=of_pretraining(241),
        without_effect=".self.key.bias",
    ),
    Pair(
        "distilbert",
        "distilbert_to_torch_encoder",
        tiny_distilbert,
        "transformers:DistilBertForSequenceClassification",
        "tests.models_encoder:TorchEncoder",
        253,
        answers=of_texts(253),
        without_effect=".k_lin.bias",
    ),
    Pair(
        "vit",
        "vit_timm_to_hf",
        tiny_timm_vit,
        "tests.models_vit:TimmViT",
        "transformers:ViTForImageClassification",
        0,
        answers=of_images(3, 32, 24),
    ),
    Pair(
        "bert",
        "bert_to_torch_encoder",
        lambda seed: tiny_torch_encoder(seed, type_vocab_size=3, pooler_activation="tanh"),
        "tests.models_encoder:TorchEncoder",
        "transformers:BertForSequenceClassification",
        257,
        reverse=True,
        answers=of_texts(257),
    ),
    Pair(
        "distilbert",
        "distilbert_to_torch_encoder",
        lambda seed: tiny_torch_encoder(seed, pooler_activation="relu"),
        "tests.models_encoder:TorchEncoder",
        "transformers:DistilBertForSequenceClassification",
        257,
        reverse=True,
        answers=of_texts(257),
    ),
    Pair(
        "vit",
        "vit_timm_to_hf",
        tiny_vit,
        "transformers:ViTForImageClassification",
        "tests.models_vit:TimmViT",
        0,
        reverse=True,
        answers=of_images(2, 24, 40),
        # transformers' config has the labels, and not how many there are.
        set_config={"num_classes": 7},
        without_effect=".k_proj.bias",
    ),
    Pair(
        "stable_diffusion",
        "stable_diffusion_ldm_to_diffusers",
        tiny_ldm,
        "tests.models_ldm:LatentDiffusion",
        "tests.models_diffusion:DiffusersModels",
        TINY.vocab,
        answers=of_diffusion(TINY),
        without_effect=(".k_proj.bias", ".k.bias"),
    ),
    Pair(
        "stable_diffusion",
        "stable_diffusion_ldm_to_diffusers",
        tiny_diffusers,
        "tests.models_diffusion:DiffusersModels",
        "tests.models_ldm:LatentDiffusion",
        TINY.vocab,
        reverse=True,
        answers=of_diffusion(TINY),
        without_effect=(".k_proj.bias", ".to_k.bias"),
    ),
)
