"""Small random speech encoders in the format of the hub."""

from pathlib import Path

import torch

_CONVOLUTIONS = {"conv_dim": (32,) * 7, "num_feat_extract_layers": 7}
_BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embedding_groups": 4,
}
_BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
_LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_WAVE = {**_CONVOLUTIONS, **_BLOCKS, "num_conv_pos_embeddings": 16}

# kind -> name of the class, options of the configuration, do_normalize
WAVE_KINDS = {
    "wav2vec2_base": ("Wav2Vec2", {**_WAVE, **_BASE}, True),
    "wav2vec2_large": ("Wav2Vec2", {**_WAVE, **_LARGE}, True),
    "hubert_base": ("Hubert", {**_WAVE, **_BASE}, False),
    "hubert_large": ("Hubert", {**_WAVE, **_LARGE}, True),
    "hubert_batch_norm": (
        "Hubert",
        {**_WAVE, **_LARGE, "conv_pos_batch_norm": True},
        True,
    ),
    "wavlm_base": ("WavLM", {**_WAVE, **_BASE}, False),
    "wavlm_large": ("WavLM", {**_WAVE, **_LARGE}, True),
    "data2vec": (
        "Data2VecAudio",
        {**_CONVOLUTIONS, **_BLOCKS, "num_conv_pos_embeddings": 3},
        True,
    ),
}
KINDS = (*WAVE_KINDS, "whisper")
POSITIONS = 300  # of the small Whisper: windows of 6 s


def write_small(folder: Path, kind: str, seed: int = 0, **changes) -> Path:
    """Write a small encoder with its feature extractor, and return the folder.

    Args:
      changes: options of the model's configuration.
    """
    model = small_model(kind, seed, **changes)
    model.save_pretrained(folder)
    small_extractor(kind).save_pretrained(folder)
    return folder


def small_model(kind: str, seed: int = 0, **changes):
    """Return a small model with random weights, biases and norms."""
    import transformers

    torch.manual_seed(seed)
    if kind == "whisper":
        options = {
            "d_model": 32,
            "encoder_layers": 3,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 64,
            "max_source_positions": POSITIONS,
        }
        family = "Whisper"
    else:
        family, options, _ = WAVE_KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**{**options, **changes})
    model = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def small_extractor(kind: str):
    """Return the feature extractor of a small model."""
    import transformers

    if kind == "whisper":
        seconds = POSITIONS // 50
        return transformers.WhisperFeatureExtractor(chunk_length=seconds)
    family, options, normalise = WAVE_KINDS[kind]
    return transformers.Wav2Vec2FeatureExtractor(
        do_normalize=normalise,
        return_attention_mask=options.get("feat_extract_norm") != "group",
    )
