"""Models that make images: networks, and the rules by which they are trained."""

from keras_segen import backend  # noqa: F401  (a missing framework is one line, here)
from keras_segen.generation.dcgan import dcgan_discriminator, dcgan_generator
from keras_segen.generation.gan import GAN
from keras_segen.generation.sngan import sngan_discriminator, sngan_generator
from keras_segen.generation.vae import VAE, vae_decoder, vae_encoder

__all__ = [
    "GAN",
    "VAE",
    "dcgan_discriminator",
    "dcgan_generator",
    "sngan_discriminator",
    "sngan_generator",
    "vae_decoder",
    "vae_encoder",
]
