"""Names of which users choose one: known to tasks, which need no Keras, and to networks."""

GAN_LOSSES = ("non_saturating", "hinge", "least_squares", "wasserstein")
SMOOTHED_GAN_LOSSES = ("non_saturating", "least_squares")  # by label_smoothing
LIKELIHOODS = ("bernoulli", "gaussian")  # of a pixel, given the code
DISCRIMINATOR_AUGMENTATIONS = ("none", "diffaugment")  # of all that a GAN's discriminator sees
