"""Cross-validation: the folds, the trainings, what is said of them."""

import csv
import dataclasses
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from browser import BROWSER, brightness, browse
from hypothesis import given
from hypothesis import strategies as st

from keras_segen import runs
from keras_segen.data import Shapes, Subset, assign_folds
from keras_segen.files import write_json
from keras_segen.intervals import two_sided_p
from keras_segen.runs import crossval, training
from keras_segen.tasks.segmentation import SegmentationTask

pytestmark = pytest.mark.once

# --- the folds


@given(
    st.lists(st.one_of(st.none(), st.sampled_from("abcdefg")), min_size=3, max_size=40),
    st.integers(2, 5),
    st.integers(0, 99),
)
def test_folds_keep_groups_whole_and_are_about_equal(groups, num_folds, seed):
    sizes = [groups.count(group) for group in set(groups) - {None}] + [1] * groups.count(None)
    if len(sizes) < num_folds:
        with pytest.raises(ValueError, match=f"cannot fill {num_folds} folds"):
            assign_folds(len(groups), num_folds, seed, groups)
        return
    folds = assign_folds(len(groups), num_folds, seed, groups)
    np.testing.assert_array_equal(folds, assign_folds(len(groups), num_folds, seed, groups))
    for group in set(groups) - {None}:
        assert len({int(f) for f, g in zip(folds, groups, strict=True) if g == group}) == 1
    counts = np.bincount(folds, minlength=num_folds)
    assert len(counts) == num_folds and counts.min() > 0
    assert counts.max() - counts.min() <= max(sizes)


def test_folds_without_groups_are_a_shuffled_partition():
    folds = assign_folds(23, 5, seed=0)
    assert sorted(np.bincount(folds)) == [4, 4, 5, 5, 5]
    assert (folds != assign_folds(23, 5, seed=1)).any()
    assert (folds != np.sort(folds)).any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3, 1, 0), "num_folds is 1"),
        ((3, 4, 0), "3 items cannot fill 4 folds"),
        ((3, 2, 0, ["a", "a", "a"]), "1 groups of 3 items cannot fill 2 folds"),
        ((3, 2, 0, ["a", "b"]), "2 group names for 3 items"),
    ],
)
def test_folds_that_cannot_be_say_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        assign_folds(*arguments)


class Grouped(Shapes):
    """Scenes in pairs."""

    @property
    def groups(self):
        return [f"pair {index // 2}" for index in range(len(self))]


def test_a_subset_is_a_data_set_of_some_items():
    whole = Grouped("train", size=16, length=6)
    part = Subset(whole, [5, 0, 2], "val")
    assert len(part) == 3 and part.split == "val"
    for index, other in enumerate((5, 0, 2)):
        for a, b in zip(part[index], whole[other], strict=True):
            np.testing.assert_array_equal(a, b)
        assert part.item_name(index) == whole.item_name(other)
    assert part.groups == ["pair 2", "pair 0", "pair 1"]
    assert Subset(Shapes("train", size=16, length=2), [1], "val").groups is None
    np.testing.assert_array_equal(
        part.pixel_counts(), sum(whole.pixel_counts_of_items()[[5, 0, 2]])
    )
    for name in ("class_names", "ignore_class", "label_ids", "image_shape"):
        assert getattr(part, name) == getattr(whole, name)
    with pytest.raises(IndexError):
        part[3]


@pytest.mark.parametrize(
    "indices, message", [([], "no item"), ([0, 6], "expected 0 to 5"), ([1, 1], "comes twice")]
)
def test_a_subset_of_wrong_indices_says_so(indices, message):
    with pytest.raises(ValueError, match=message):
        Subset(Shapes("train", size=16, length=6), indices, "train")


def task(folder, **options):
    values = {
        "data": f"folder:{folder}",
        "image_size": (16, 16),
        "filters": (4, 8),
        "batch_size": 4,
        "epochs": 2,
        "learning_rate": 0.01,
        **options,
    }
    return SegmentationTask(**values)


def test_a_fold_is_held_out_of_the_training_split(picture_folder):
    whole = task(picture_folder).load_data("train")
    names = {whole.item_name(index) for index in range(len(whole))}
    seen = []
    for fold in (1, 2, 3):
        plan = task(picture_folder, folds=3, fold=fold)
        train, val = plan.load_data("train"), plan.load_data("val")
        trained = {train.item_name(index) for index in range(len(train))}
        held_out = {val.item_name(index) for index in range(len(val))}
        assert trained | held_out == names and not trained & held_out
        seen += held_out
        other = task(picture_folder, model="plain_unet", folds=3, fold=fold, filters=(4, 4))
        np.testing.assert_array_equal(other.load_data("val").indices, val.indices)
        assert len(plan.load_data("test")) == 4 and plan.load_data("test").split == "test"
    assert sorted(seen) == sorted(names)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"folds": 1, "fold": 1}, "folds is 1"),
        ({"folds": 3}, "fold 0, expected"),
        ({"folds": 3, "fold": 4}, "fold 4, expected"),
        ({"fold": 2}, "folds is 0"),
    ],
)
def test_wrong_folds_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationTask(**options)


# --- the trainings


@pytest.fixture(scope="module")
def plans(picture_folder):
    return {
        "unet": task(picture_folder),
        "slow": task(picture_folder, learning_rate=0.001),
    }


@pytest.fixture(scope="module")
def validated(plans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossval") / "out"
    return folder, crossval.cross_validate(plans, folder, folds=2, verbose=0)


def test_every_fold_is_a_run_that_was_measured_on_what_it_held_out(validated, plans):
    folder, result = validated
    assert result["held_out"] == [4, 4] and result["groups"] is None
    for name in plans:
        figures = []
        for fold in (1, 2):
            run = folder / name / f"fold-{fold}"
            plan = SegmentationTask.from_json(run / "run.json")
            assert plan == dataclasses.replace(plans[name], folds=2, fold=fold)
            history = training.read_history(run)
            assert history["epoch"] == [1, 2]
            measured = runs.evaluate(run, "val").figures
            figures.append(measured["mean_iou"])
            assert measured["mean_iou"] == pytest.approx(history["val_mean_iou"][-1], abs=1e-6)
            assert runs.evaluate(run, "test").figures["images"] == 4
        assert result["models"][name]["mean_iou"]["by_fold"] == figures
        assert result["models"][name]["mean_iou"]["mean"] == pytest.approx(np.mean(figures))
        deviation = result["models"][name]["mean_iou"]["standard_deviation"]
        assert deviation == pytest.approx(np.std(figures, ddof=1))


def test_a_fold_keeps_its_last_epoch_also_if_an_earlier_one_was_better(picture_folder, tmp_path):
    class Spoil(keras.callbacks.Callback):
        """Makes the second epoch predict the rarest class everywhere."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.get_layer("logits").bias.assign([0, 0, 0, 0, 0, 1000])
                self.model.optimizer.learning_rate = 1e-9

    for folds, fold, kept in ((0, 0, 0), (2, 1, 1)):
        run = tmp_path / f"{folds}"
        plan = task(picture_folder, folds=folds, fold=fold)
        training.train(plan, run, callbacks=[Spoil()], verbose=0)
        history = training.read_history(run)["val_mean_iou"]
        assert history[0] > history[1]
        found = runs.evaluate(run, "val").figures
        assert found["mean_iou"] == pytest.approx(history[kept], abs=1e-6)


def test_differences_are_taken_fold_by_fold(validated, read_json):
    folder, result = validated
    assert result == read_json(folder / "crossval.json")
    assert [row["figure"] for row in result["differences"]] == list(SegmentationTask.fold_figures)
    row = result["differences"][0]
    first, second = (result["models"][name]["mean_iou"]["by_fold"] for name in ("unet", "slow"))
    assert (row["first"], row["second"]) == ("unet", "slow")
    assert row["by_fold"] == pytest.approx(np.subtract(second, first))
    with open(folder / "crossval.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["fold"]) for row in rows] == [
        ("unet", "1"),
        ("unet", "2"),
        ("slow", "1"),
        ("slow", "2"),
    ]
    assert [float(row["mean_iou"]) for row in rows] == [*first, *second]
    assert (folder / "crossval.png").stat().st_size > 1000


class StopInSecondEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_finished_folds_are_kept_and_an_unfinished_one_goes_on(plans, validated, tmp_path):
    """Interrupted in the second model's first fold, the same call then ends as if it were not."""
    out = tmp_path / "out"
    shutil.copytree(validated[0], out)
    shutil.rmtree(out / "slow")
    with pytest.raises(KeyboardInterrupt):
        training.train(
            dataclasses.replace(plans["slow"], folds=2, fold=1),
            out / "slow" / "fold-1",
            callbacks=[StopInSecondEpoch()],
            verbose=0,
        )
    models = sorted(out.glob("unet/*/model.keras"))
    before = [path.stat().st_mtime_ns for path in models]
    said = []
    result = crossval.cross_validate(plans, out, folds=2, verbose=0, tell=said.append)
    assert len(before) == 2 and [path.stat().st_mtime_ns for path in models] == before
    starts = training.load_run(out / "slow" / "fold-1")["starts"]
    assert [start["epoch"] for start in starts] == [0, 1]
    for name, model in validated[1]["models"].items():
        found = result["models"][name]["mean_iou"]["by_fold"]
        assert found == pytest.approx(model["mean_iou"]["by_fold"], abs=2e-3)
    assert "slow, fold 2 of 2" in said


def test_an_evaluation_of_another_model_is_not_taken_for_the_folds(validated, read_json):
    run = validated[0] / "unet" / "fold-1"
    right = read_json(run / "evaluation-val.json")
    write_json(run / "evaluation-val.json", {**right, "model_sha256": "0", "mean_iou": 2.0})
    plan = SegmentationTask.from_json(run / "run.json")
    assert crossval.run_fold(plan, run, verbose=0)["mean_iou"] == right["mean_iou"]


def test_folds_of_other_experiments_are_not_mixed_in(plans, validated):
    changed = {"unet": dataclasses.replace(plans["unet"], batch_size=2)}
    with pytest.raises(ValueError, match="holds a run with batch_size 4, expected 2"):
        crossval.cross_validate(changed, validated[0], folds=2, verbose=0)


def test_experiments_that_cannot_be_compared_are_refused(plans, validated, tmp_path):
    plan, run = plans["unet"], validated[0] / "unet" / "fold-1"
    for others, folds, message in (
        ({}, 2, "no model to validate"),
        ({"a": plan}, 1, "folds is 1"),
        ({"../a": plan}, 2, "cannot name a folder"),
        ({"a": plan, "b": dataclasses.replace(plan, seed=1)}, 2, "seed of b is 1"),
        ({"a": plan, "b": dataclasses.replace(plan, data="shapes")}, 2, "data of b is 'shapes'"),
        ({"a": dataclasses.replace(plan, start_from=str(run))}, 2, "has seen the images"),
        ({"a": dataclasses.replace(plan, early_stopping=1)}, 2, "must choose nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            crossval.cross_validate(others, tmp_path / "out", folds, verbose=0)
    assert not (tmp_path / "out").exists()


# --- the statistics


@given(st.floats(-50, 50), st.integers(1, 30))
def test_p_is_that_of_students_distribution(t, degrees):
    # scipy.stats.t.sf is 0.5 for all t below 1e-8, where the distribution is steeper than that.
    expected = 1 - scipy.special.betainc(0.5, degrees / 2, t**2 / (degrees + t**2))
    assert two_sided_p(t, degrees) == pytest.approx(expected, abs=1e-12)


def test_difference_follows_nadeau_and_bengio():
    first, second = [0.50, 0.55, 0.48, 0.61], [0.53, 0.54, 0.52, 0.66]
    found = crossval.difference(first, second)
    plain = scipy.stats.ttest_rel(second, first)
    assert found["mean"] / found["standard_error"] == pytest.approx(plain.statistic)
    # k-fold: n_test / n_train is 1 / (k - 1), so the plain t shrinks by sqrt(1 + k / (k - 1))
    assert found["t"] == pytest.approx(plain.statistic / np.sqrt(1 + 4 / 3))
    assert found["p"] == pytest.approx(2 * scipy.stats.t.sf(found["t"], 3))
    assert found["p"] > plain.pvalue
    swapped = crossval.difference(second, first)
    assert swapped["t"] == pytest.approx(-found["t"]) and swapped["p"] == pytest.approx(found["p"])


def test_a_difference_without_spread_has_no_p():
    found = crossval.difference([0.5, 0.25], [0.75, 0.5])
    assert found["mean"] == 0.25 and found["t"] is None and found["p"] is None
    for wrong in (([0.5], [0.5]), ([0.5, 0.5], [0.5, 0.5, 0.5])):
        with pytest.raises(ValueError, match="one number per fold"):
            crossval.difference(*wrong)


# --- the page and the command


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_is_quiet_in_a_browser(validated, scheme, tmp_path):
    seen, log = browse(validated[0] / "crossval.html", tmp_path, (400, 1600), scheme)
    assert "CONSOLE" not in log, log
    for frame in seen:
        assert frame["width"] <= frame["inner"], frame["wide"]
        assert frame["hidden"] == []
        assert frame["requests"] == [] and frame["broken"] == 0
        assert (brightness(frame["background"]) < 60) == (scheme == "dark")
        assert frame["chart"] == frame["ink"]


def test_command_validates_models_and_files(picture_folder, plans, tmp_path):
    write_json(tmp_path / "slow.json", {"experiment": plans["slow"].to_dict()})
    command = [sys.executable, "-m", "keras_segen", "crossval", "unet", str(tmp_path / "slow.json")]
    command += ["--data", f"folder:{picture_folder}", "--image-size", "16x16", "--filters", "4,8"]
    command += ["--batch-size", "4", "--epochs", "1", "--folds", "2", "--out", str(tmp_path / "o")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\n unet +0\.\d{4} ± 0\.\d{4} ", done.stdout)
    assert re.search(r"\n slow − unet +mean IoU +[+−]0\.\d{3} ", done.stdout)
    assert "Nadeau and Bengio" in done.stdout and "crossval.html" in done.stdout
    again = [*command[:4], "unet", "unet", *command[6:]]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 1 and "unet is named twice" in done.stderr


def made_up(*folds):
    """A result with a model for each list of mean IoUs: a, b, c."""
    models = {
        name: {"mean_iou": crossval.over_folds(values)}
        for name, values in zip("abc", folds, strict=False)
    }
    differences = [
        {
            "first": first,
            "second": second,
            "figure": "mean_iou",
            **crossval.difference(
                models[first]["mean_iou"]["by_fold"], models[second]["mean_iou"]["by_fold"]
            ),
        }
        for first, second in itertools.combinations(models, 2)
    ]
    return {"folds": len(folds[0]), "models": models, "differences": differences}


@pytest.mark.parametrize(
    "folds, words",
    [
        ([[0.5, 0.7]], "a: mean IoU 0.600 ± 0.141."),
        ([[0.5, 0.6, 0.5], [0.6, 0.5, 0.55]], r"3 folds cannot tell b from a \(0.017, p = 0.8"),
        ([[0.5, 0.6, 0.5], [0.81, 0.9, 0.8]], r"b has a higher mean IoU than a \(0.303, p = 0.0"),
        ([[0.5, 0.25], [0.25, 0.0]], r"a has a higher mean IoU than b \(0.250\)\."),
        ([[0.5, 0.25], [0.5, 0.25]], r"2 folds cannot tell a from b \(0.000\) by mean IoU\."),
        (
            [[0.5, 0.6, 0.5], [0.82, 0.89, 0.81], [0.8, 0.9, 0.8]],
            r"3 folds cannot tell b from c .* by mean IoU; b has a higher mean IoU than a \(",
        ),
    ],
)
def test_the_verdict_names_a_winner_only_where_there_is_one(folds, words):
    assert re.match(words, crossval.verdict(made_up(*folds), SegmentationTask()))


def test_the_page_begins_with_the_verdict(validated):
    page = (validated[0] / "crossval.html").read_text("utf-8")
    result = json.loads((validated[0] / "crossval.json").read_text("utf-8"))
    first = re.search("<h1>(.*?)</h1>", page)[1]
    assert first == html.escape(crossval.verdict(result, SegmentationTask()))
