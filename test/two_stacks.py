"""The smallest encoder with two stacks, for terms that read more than its end."""

from icefall_kd.core.config import ModelConfig, ZipformerConfig

LENS = [23, 13]  # student frames of two utterances, 40 ms
STACKS = (4, 5)  # sizes of the stacks
VOCAB = 9
MODEL = ModelConfig(
    encoder=ZipformerConfig(
        downsampling_factor=(1, 2),
        num_encoder_layers=(1,),
        encoder_dim=STACKS,
        encoder_unmasked_dim=(4,),
        feedforward_dim=(8,),
        num_heads=(1,),
        cnn_module_kernel=(7,),
    ),
    vocab_size=VOCAB,
)
