"""Models that make images: networks, and the rules by which they are trained."""

from keras_segen import backend  # noqa: F401  (a missing framework is one line, here)
from keras_segen.generation.dcgan import dcgan_discriminator, dcgan_generator
from keras_segen.generation.distances import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    moments,
    precision_recall,
)
from keras_segen.generation.evaluate import compare_features, evaluate, nearest_neighbors
from keras_segen.generation.explore import interpolation, neighbors, samples, traversal
from keras_segen.generation.extractors import Extractor, load_extractor
from keras_segen.generation.gan import GAN
from keras_segen.generation.sngan import sngan_discriminator, sngan_generator
from keras_segen.generation.style_gan import StyleGAN
from keras_segen.generation.stylegan2 import stylegan2_discriminator, stylegan2_generator
from keras_segen.generation.vae import VAE, vae_decoder, vae_encoder

# The models that make images, and what builds their two networks.
NETWORKS = {
    "dcgan": (dcgan_generator, dcgan_discriminator),
    "sngan": (sngan_generator, sngan_discriminator),
    "stylegan2": (stylegan2_generator, stylegan2_discriminator),
    "vae": (vae_encoder, vae_decoder),
}

__all__ = [
    "GAN",
    "NETWORKS",
    "VAE",
    "Extractor",
    "StyleGAN",
    "compare_features",
    "dcgan_discriminator",
    "dcgan_generator",
    "density_coverage",
    "evaluate",
    "frechet_distance",
    "interpolation",
    "kernel_distance",
    "load_extractor",
    "moments",
    "nearest_neighbors",
    "neighbors",
    "precision_recall",
    "samples",
    "sngan_discriminator",
    "sngan_generator",
    "stylegan2_discriminator",
    "stylegan2_generator",
    "traversal",
    "vae_decoder",
    "vae_encoder",
]
