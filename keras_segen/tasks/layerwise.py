"""What a comparison layer by layer must know of a model: its networks, and how they run."""


class Layerwise:
    """A model that is one functional network; tasks of other models override the methods.

    A training step is the model's own `train_step`. The layers of all networks that `parts` names
    are compared, in the order in which the step calls them.
    """

    losses = ("loss",)  # names of the losses that a training step reports

    def parts(self, model):
        """The networks whose layers are compared: dict of name -> functional `keras.Model`.

        The name comes before those of the layers; it is empty if the model is the only one.
        """
        return {"": model}

    def copy_model(self, model, copy):
        """Copies a model.

        Args:
            model: what `build_model` returned.
            copy: callable from a functional network to its copy in another precision.

        Returns:
            A model of the copied networks and with the same weights, not compiled.
        """
        return copy(model)

    def run_layers(self, model, images, target):
        """Runs each network once in inference.

        Args:
            model: what `copy_model` returned.
            images, target: tensors, a batch of the training.
        """
        model(images, training=False)
