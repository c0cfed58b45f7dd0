"""The task of docs/architecture.md, as it stands there: trained, judged, drawn and compared."""

import re
from pathlib import Path

import denoising
import numpy as np
import pytest

from keras_segen import compare, runs
from keras_segen.tasks import GanTask, SegmentationTask, registry

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoiser") / "run"
    runs.train(denoising.DenoisingTask(epochs=2), folder, verbose=0)
    return folder


def test_the_guide_shows_the_task_to_the_letter():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert shown == (ROOT / "tests" / "denoising.py").read_text(encoding="utf-8")


def test_a_task_of_ones_own_is_trained_drawn_and_resumed(run):
    history = runs.read_history(run)
    assert history["val_loss"][1] < history["val_loss"][0]
    assert {path.name for path in run.iterdir()} >= {"model.keras", "curves.png", "run.json"}
    assert (run / "previews" / "epoch-0002.png").exists()
    assert runs.resume(run, verbose=0) == history


def test_a_task_of_ones_own_is_judged(run):
    found = runs.evaluate(run, "test")
    errors = [
        np.square(noisy - clean).mean()
        for noisy, clean in denoising.DenoisingTask().load_data("test")
    ]
    assert found.figures["psnr"] > -10 * np.log10(np.mean(errors)) + 1  # dB, of the noisy images
    assert "denoised" in (run / "evaluation-test.csv").read_text(encoding="utf-8")
    assert f"{found.figures['psnr']:.2f} dB" in (run / "evaluation-test.html").read_text("utf-8")


def test_what_a_task_is_not_made_for_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="denoiser takes the noise off images and makes no images"):
        runs.generate(run, tmp_path / "out.png")
    with pytest.raises(ValueError, match="extractor is for dcgan, sngan, stylegan2, vae"):
        runs.evaluate(run, extractor="efficientnet_lite0")


@pytest.mark.once
def test_a_task_of_ones_own_is_compared(tmp_path):
    report = compare.run("denoiser", out=tmp_path, threads=1, seconds=0, epochs=1)
    assert report.status == "passed", report.checks
    assert report.figures.loc["PSNR, validation", "torch"] > 17  # 14.4 dB before
    assert "at most" in report.page and "Denoised on each" in report.page


def test_a_task_is_registered_once():
    assert registry.register(denoising.DenoisingTask) is denoising.DenoisingTask
    assert registry.KINDS.count(denoising.DenoisingTask) == 1
    assert registry.kind_of("denoiser") is denoising.DenoisingTask


def test_an_option_of_another_task_names_the_models_that_have_it():
    registry.check_options(SegmentationTask(), "evaluate", {"batch_size": 2})
    with pytest.raises(ValueError, match="output is for unet, plain_unet, fcn, and this is a run"):
        registry.check_options(GanTask(), "predict", {"output": "entropy"})
