"""What a comparison looks at, which depends on what a model makes: masks or pictures.

The children (`child.py`) ask for outputs, times and figures; the report asks for checks, words and
pictures. Keras is imported by what needs it.
"""

import time

import numpy as np

from keras_segen import frameworks, plot
from keras_segen.compare import checks as parity
from keras_segen.data.loader import Batches
from keras_segen.report.numbers import show

NUM_PROBES = 16
NUM_PICTURES = 6
NUM_GENERATED = 16  # batches that are timed
NUM_SHOWN = 8


class Masks:
    """Logits of some validation images, and the class of every pixel of the split."""

    outputs_are = "logits"
    least_loss_tolerance = 1e-3

    def outputs(self, model, dataset):
        """What a model makes of fixed inputs: float32 array, the first axis counts them."""
        from keras_segen import backend

        images = [dataset[i][0] for i in range(min(NUM_PROBES, len(dataset)))]
        return backend.infer(model, np.stack(images))

    def apply(self, model, dataset, batch_size):
        """Runs the model over a data set.

        Returns:
            arrays: dict, `ids`: class ids `(items, height, width)`, uint8.
            milliseconds: dict, `predict`: list of the seconds of each batch.
        """
        from keras_segen import backend, metrics

        ids, seconds = [], []
        for images, _ in Batches(dataset, batch_size).read(epoch=0):
            start = time.perf_counter()
            logits = backend.infer(model, images)
            seconds.append(time.perf_counter() - start)
            ids.append(metrics.class_ids(logits).astype("uint8"))
        return {"ids": np.concatenate(ids)}, {"predict": seconds}

    def figures(self, task, model, dataset, history):
        """Returns what the model came to: dict of name -> float, or list by class."""
        from keras_segen.segmentation import evaluate as evaluation

        matrix = evaluation.confusion_matrix(model, dataset, task.batch_size)
        found = evaluation.figures(matrix, dataset.class_names)
        return {**found, "class_iou": list(found["class_iou"].values())}

    def hand_over(self, own, served):
        """Compares what a model gave where it was trained with what it gives elsewhere: dict."""
        equal = float((own["ids"] == served["ids"]).mean())
        return {
            "largest_difference": parity.largest(own["last_outputs"], served["last_outputs"]),
            "largest_output": float(np.abs(own["last_outputs"]).max()),
            "equal_pixels": equal,
            "passed": equal >= parity.EQUAL_PIXELS,
        }

    def hand_over_check(self, row):
        return parity.check(
            f"{row['trained_on']} model run on {row['run_on']}",
            1.0 - row["equal_pixels"],
            1.0 - parity.EQUAL_PIXELS,
            "share of pixels that change",
            f"logits differ by at most {show(row['largest_difference'], 2)} "
            f"(the largest is {show(row['largest_output'], 2)})",
        )

    def conclude(self, dataset, arrays, folder):
        """Draws what the backends make, and says how far it differs: parts of the report."""
        disagreement = None
        if len(arrays) == 2:
            a, b = (saved["ids"] for saved in arrays.values())
            pixels = int((a != b).sum())
            disagreement = {"pixels": pixels, "of": int(a.size), "share": pixels / a.size}
        chosen = np.linspace(0, len(dataset) - 1, min(NUM_PICTURES, len(dataset))).astype(int)
        pictures = []
        if arrays:
            images, truth = map(np.stack, zip(*(dataset[int(i)] for i in chosen), strict=True))
            figure = plot.comparison(
                images,
                truth,
                {
                    frameworks.FRAMEWORKS[backend]: saved["ids"][chosen]
                    for backend, saved in arrays.items()
                },
                palette=dataset.palette,
                class_names=dataset.class_names,
                ignore_class=dataset.ignore_class,
            )
            plot.save(figure, folder / "predictions.png")
            pictures.append(
                {
                    "title": "The same validation images on both backends",
                    "file": "predictions.png",
                    "note": "Image, truth, what each backend's own training predicts, and where "
                    "they disagree.",
                }
            )
        return {
            "class_names": list(dataset.class_names),
            "palette": np.asarray(dataset.palette).tolist(),
            "disagreement": disagreement,
            "pictures": pictures,
        }


class Pictures:
    """Pictures that a generator makes of fixed codes."""

    outputs_are = "pictures of the same codes"
    least_loss_tolerance = 1e-4

    def outputs(self, model, dataset):
        return model.generate(NUM_PROBES, seed=0)

    def apply(self, model, dataset, batch_size):
        seconds = []
        for number in range(NUM_GENERATED):
            start = time.perf_counter()
            model.generate(batch_size, seed=number, batch_size=batch_size)
            seconds.append(time.perf_counter() - start)
        return {}, {"generate": seconds}

    def figures(self, task, model, dataset, history):
        """The last validation bounds of a VAE, and distances to real images if they are asked."""
        found = {name: float(value) for name, value in task.measure(model, dataset).items()}
        for name in ("val_elbo", "val_bits_per_dimension"):
            if name in history:
                found[name] = float(history[name][-1])
        return {name.removeprefix("val_"): value for name, value in found.items()}

    def hand_over(self, own, served):
        difference = parity.largest(own["last_outputs"], served["last_outputs"])
        return {
            "largest_difference": difference,
            "passed": difference <= parity.OUTPUT_TOLERANCE,
        }

    def hand_over_check(self, row):
        return parity.check(
            f"{row['trained_on']} model run on {row['run_on']}",
            row["largest_difference"],
            parity.OUTPUT_TOLERANCE,
            "largest difference of pictures, which go from 0 to 1",
            f"{NUM_PROBES} pictures of the same codes",
        )

    def conclude(self, dataset, arrays, folder):
        disagreement, pictures = None, []
        rows = {
            # What is no number, after a training that diverged, is drawn black.
            frameworks.FRAMEWORKS[backend]: np.nan_to_num(saved["last_outputs"][:NUM_SHOWN])
            for backend, saved in arrays.items()
        }
        if len(arrays) == 2:
            a, b = (saved["last_outputs"].astype("float64") for saved in arrays.values())
            apart = np.abs(a - b)
            disagreement = {"largest": float(apart.max()), "mean": float(apart.mean())}
            rows["difference"] = np.nan_to_num(apart[:NUM_SHOWN])
        if rows:
            labels = [name if k == 0 else "" for name in rows for k in range(NUM_SHOWN)]
            figure = plot.images(np.concatenate(list(rows.values())), NUM_SHOWN, labels)
            plot.save(figure, folder / "predictions.png")
            note = "A row for each backend's own training, a column for each code"
            note += "; below, how far they are apart, black where they are equal." * (len(rows) > 2)
            pictures.append(
                {
                    "title": "Pictures of the same codes after the training",
                    "file": "predictions.png",
                    "note": note if len(rows) > 2 else f"{note}.",
                }
            )
        return {"disagreement": disagreement, "pictures": pictures}


SUBJECTS = {"masks": Masks(), "pictures": Pictures()}
