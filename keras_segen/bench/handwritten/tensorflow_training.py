"""What a training in plain TensorFlow needs beside the network: variables by name, Adam, norm.

TensorFlow has the kernel of Adam's step and of batch normalization, but their loops and averages
are Keras' business; here they are by hand.
"""

import tensorflow as tf


def make_variables(weights, prefix=""):
    """Makes variables of arrays by name, such as `"down0_conv1/kernel"`.

    Returns:
        Dict of `tf.Variable` by name: of the arrays whose names begin with the prefix, without it.
    """
    return {
        name.removeprefix(prefix): tf.Variable(array)
        for name, array in weights.items()
        if name.startswith(prefix)
    }


def read_variables(variables, prefix=""):
    """Returns variables as NumPy arrays by name, after a prefix."""
    return {prefix + name: variable.numpy() for name, variable in variables.items()}


def trainable(variables, fixed=()):
    """Lists those that gradients move: not the averages of batch normalization, nor `fixed`."""
    return [v for name, v in variables.items() if "/moving_" not in name and name not in fixed]


def batch_norm(variables, x, name, training, epsilon=1e-3, momentum=0.9):
    """Batch normalization; in training by the batch's own statistics, which are remembered.

    The variance that the kernel returns to remember has n - 1 in the divisor, Keras' has n.
    """
    gamma, beta = variables[f"{name}/gamma"], variables[f"{name}/beta"]
    averages = [variables[f"{name}/moving_mean"], variables[f"{name}/moving_variance"]]
    if not training:
        x, _, _ = tf.compat.v1.nn.fused_batch_norm(
            x, gamma, beta, *averages, epsilon=epsilon, is_training=False
        )
        return x
    x, *found = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)
    for average, value in zip(averages, found, strict=True):
        average.assign_sub((1 - momentum) * (average - value))
    return x


def double(variables, x, name):
    """Doubles height and width by a transposed convolution, without its bias."""
    kernel = variables[f"{name}/kernel"]  # (height, width, outputs, inputs)
    batch, height, width, _ = x.shape
    shape = [batch, 2 * height, 2 * width, kernel.shape[2]]
    return tf.nn.conv2d_transpose(x, kernel, shape, 2, "SAME")


class Noise:
    """Draws the random numbers of each step, or asks `draw` for them.

    Args:
        latent_dim: int, numbers in a code.
        draw: `callable(step, batch)` -> float32 `(batch, latent_dim)`, NumPy; None for
            TensorFlow's own.
    """

    def __init__(self, latent_dim, draw):
        self.latent_dim, self.draw, self.steps = latent_dim, draw, 0

    def __call__(self, batch):
        self.steps += 1
        if self.draw is None:
            return tf.random.normal((batch, self.latent_dim))
        return tf.constant(self.draw(self.steps - 1, batch))


class Adam:
    """Adam (Kingma, Ba, 2015), https://arxiv.org/abs/1412.6980, by TensorFlow's own kernel."""

    def __init__(self, variables, learning_rate, epsilon, beta_1=0.9, beta_2=0.999):
        self.variables = variables
        self.learning_rate = learning_rate
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.step = tf.Variable(0.0)
        self.first = [tf.Variable(tf.zeros_like(variable)) for variable in variables]
        self.second = [tf.Variable(tf.zeros_like(variable)) for variable in variables]

    def apply(self, gradients):
        """Moves each variable along its gradient."""
        step = self.step.assign_add(1.0)
        lists = zip(self.variables, self.first, self.second, gradients, strict=True)
        for variable, first, second, gradient in lists:
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=self.beta_1**step,
                beta2_power=self.beta_2**step,
                lr=self.learning_rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )
