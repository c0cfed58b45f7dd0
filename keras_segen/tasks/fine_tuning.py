"""What tasks with a pretrained encoder share: its checks, two phases, the optimizer."""

from keras_segen.tasks.task import Phase


class FineTuning:
    """For a `Task` with the fields `encoder`, `encoder_weights`, `freeze_epochs`,
    `fine_tune_rate`, `start_from`, `optimizer` and `weight_decay`.
    """

    def check_encoder(self):
        """Checks what belongs to a pretrained encoder."""
        if self.encoder != "none" and self.channels != 3:
            raise ValueError(
                f"Encoder {self.encoder!r} takes RGB: use channels=3, also for gray images."
            )
        if not 0 <= self.freeze_epochs <= self.epochs:
            raise ValueError(
                f"freeze_epochs is {self.freeze_epochs}, expected 0 to {self.epochs}, the epochs."
            )
        if self.freeze_epochs and self.encoder == "none":
            raise ValueError(
                f"freeze_epochs is {self.freeze_epochs}, but there is no encoder to freeze."
            )
        if self.freeze_epochs and self.encoder_weights == "none" and self.start_from is None:
            raise ValueError(
                f"freeze_epochs is {self.freeze_epochs}, but the encoder's weights are random: use "
                "encoder_weights='imagenet' or start_from."
            )
        if self.fine_tune_rate is not None and not self.freeze_epochs:
            raise ValueError(
                f"fine_tune_rate is {self.fine_tune_rate}, the learning rate after the epochs "
                "with a frozen encoder, but freeze_epochs is 0."
            )

    def phases(self):
        """Returns the phases of the training, one after the other: a list of `Phase`."""
        rate = self.fine_tune_rate or self.learning_rate / 10
        phases = [
            Phase(0, self.freeze_epochs, True, self.learning_rate),
            Phase(
                self.freeze_epochs,
                self.epochs,
                False,
                rate if self.freeze_epochs else self.learning_rate,
            ),
        ]
        return [phase for phase in phases if phase.first < phase.end]

    def make_optimizer(self, model, rate, **options):
        """Makes the optimizer; `options` are further arguments of Keras' class."""
        import keras

        if self.optimizer == "adam":
            optimizer = keras.optimizers.Adam(rate, **options)
        elif self.optimizer == "adamw":
            optimizer = keras.optimizers.AdamW(rate, self.weight_decay, **options)
        else:
            decay = self.weight_decay or None
            optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay, **options)
        # Decay is for kernels, which have 2 axes or more: not for scales and shifts of channels.
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if v.ndim < 2])
        return optimizer
