"""The same networks and training loops, written by hand in plain PyTorch and plain TensorFlow.

They say what Keras costs on top: `keras_segen.bench.native` starts a network of ours and one
of these from the same weights, feeds both the same batches, proves that they compute the same and
only then looks at the clock. No Keras here: each file is what somebody would write who knows the
framework alone, `torch_unet.py` beside `tensorflow_unet.py`, and imports that framework only.

Each file has a class `Trainer`:

    Trainer(weights, …)    starts from weights by name: "down0_conv1/kernel" -> NumPy array
    train(batches)         takes one step per batch, yields its losses
    predict(inputs)        NumPy in, NumPy out
    weights()              the weights as they are now, by the same names
"""
