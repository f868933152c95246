from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from partsum.shared.errors import DataError, TaskError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import (
    Task,
    data_digest,
    evaluate,
    gather,
    load_samples,
    load_task,
    num_samples,
    walk,
)
from partsum.shared.tasks import char_gpt, digits, digits_vit, image_mlp, image_vgg, image_vit
from partsum.shared.tasks.vgg import VGG19, Vgg
from partsum.shared.width import find_widths

CPU = torch.device("cpu")

PLAY = """A Play

ACT I.

SCENE I. A room.

KING.
Who comes so fast in silence of the night?

FOOL. A friend of mine, and of your crown a friend.

KING.
What friend? Speak on.

"""
OTHER_PLAY = """Another Play

Scene I.

Kin.
Now fair befall the morning that we met.

"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: on a busy machine more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(task: Task, epochs: int) -> tuple[float, float]:
    """The validation loss before and after a little training."""
    torch.manual_seed(0)
    model = task.model()
    train, validation = task.train(), task.validation()
    before = evaluate(model, task, validation, CPU).loss
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    everything = torch.arange(num_samples(train))
    for indices in walk(0, everything, 0, epochs * len(everything), 64):
        inputs, targets = gather(train, indices)
        loss: torch.Tensor = task.loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return before, evaluate(model, task, validation, CPU).loss


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_images(folder: Path, count: int = 12, end: str = "") -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28))
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte{end}", pixels)
        write_idx(folder / f"{split}-labels-idx1-ubyte{end}", np.arange(count) % 10)


def write_plays(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text(PLAY * 20, encoding="utf-8")
    (folder / "b.txt").write_text(OTHER_PLAY * 20, encoding="utf-8")
    return folder


def test_an_mlp_learns_digits() -> None:
    before, after = losses(digits(widths=[32, 32]), epochs=3)
    assert after < before / 2


def test_a_transformer_learns_digits() -> None:
    before, after = losses(digits_vit(width=32, heads=2, layers=1), epochs=4)
    assert after < before - 0.5


def test_digits_are_split_the_same_way_for_the_same_seed_and_without_overlap() -> None:
    task = digits(validation=300, seed=4)
    train, validation = task.train(), task.validation()
    assert (num_samples(train), num_samples(validation)) == (1497, 300)
    assert data_digest(train) == data_digest(digits(validation=300, seed=4).train())
    assert data_digest(train) != data_digest(digits(validation=300, seed=5).train())
    images, _ = gather(train, torch.arange(1497))
    assert images.shape == (1497, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (0, 1)


@pytest.mark.parametrize("validation", [0, 1797, -3])
def test_digits_with_nothing_left_to_train_or_to_hold_out_are_refused(validation: int) -> None:
    with pytest.raises(DataError, match=f"validation = {validation}: digits has 1797 samples"):
        digits(validation=validation).train()


@pytest.mark.parametrize(
    "name", ["digits", "digits_vit", "image_mlp", "image_vgg", "image_vit", "char_gpt"]
)
def test_a_shipped_task_loads_by_name_without_touching_data(name: str, tmp_path: Path) -> None:
    options = {} if name.startswith("digits") else {"folder": str(tmp_path / "none")}
    assert isinstance(load_task(TaskSpec(f"partsum.shared.tasks:{name}", options)), Task)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_an_image_task_reads_idx_files_gzipped_or_plain(tmp_path: Path, end: str) -> None:
    write_images(tmp_path, end=end)
    task = image_mlp(str(tmp_path), widths=[8, 8])
    images, labels = gather(task.train(), torch.arange(12))
    assert (images.shape, images.dtype) == ((12, 1, 28, 28), torch.float32)
    assert labels.tolist() == [*range(10), 0, 1]
    assert -0.82 < images.min() < images.max() < 2.03
    assert task.model()(images).shape == (12, 10)
    assert image_vit(str(tmp_path), width=8, heads=2, layers=1)
    assert num_samples(task.validation()) == 12


@pytest.mark.parametrize("patch", [4, 7])
def test_a_vision_transformer_takes_patches_that_tile_its_images(patch: int) -> None:
    model = image_vit(width=16, heads=4, layers=1, mlp_ratio=2, patch=patch).model()
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert find_widths(model).group("stream").units == 16


@pytest.mark.parametrize("norm", [True, False])
def test_a_vgg_flattens_what_its_halvings_leave_of_an_image(norm: bool) -> None:
    model = image_vgg(channels=[8, 0, 8, 0], hidden=[16, 12], norm=norm, dropout=0.1).model()
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert model.get_parameter("classifier.0.weight").shape == (16, 8 * 7 * 7)
    assert [name for name, _ in model.named_parameters()][-1] == "classifier.6.bias"


def test_a_vgg_takes_colours_too_and_names_sizes_that_it_cannot_have() -> None:
    with torch.device("meta"):
        model = Vgg(32, 3, VGG19, [], 5)
    assert model.get_parameter("features.0.weight").shape == (64, 3, 3, 3)
    with pytest.raises(ValueError, match="halve an image of 28 pixels to nothing"):
        Vgg(28, 1, VGG19, [64], 10)
    with pytest.raises(ValueError, match="there must be at least one convolution"):
        Vgg(28, 1, [0], [64], 10)


def test_missing_images_are_named_together_with_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_samples(image_mlp(str(tmp_path)).train, "training")
    assert "no train-images-idx3-ubyte" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "apt install dataset-fashion-mnist" in str(caught.value)


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(DataError, match="holds 12 t10k images, but 5 labels"):
        image_mlp(str(tmp_path)).validation()
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.full(12, 10))
    with pytest.raises(DataError, match="the label 10; ten classes are 0 to 9"):
        image_mlp(str(tmp_path)).validation()
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((12, 32, 28)))
    with pytest.raises(DataError, match=r"images of \(32, 28\) pixels"):
        image_mlp(str(tmp_path)).validation()


def test_a_gpt_learns_a_text(tmp_path: Path) -> None:
    task = char_gpt(str(write_plays(tmp_path / "plays")), 32, 2, 1, context=32)
    before, after = losses(task, epochs=8)
    assert after < before - 0.5


def test_the_characters_after_a_context_are_the_targets(tmp_path: Path) -> None:
    task = char_gpt(str(write_plays(tmp_path / "plays")), context=16)
    contexts, targets = gather(task.train(), torch.arange(num_samples(task.train())))
    assert contexts.shape == targets.shape == (num_samples(task.train()), 16)
    assert contexts.dtype == targets.dtype == torch.int64
    assert torch.equal(contexts[:, 1:], targets[:, :-1])
    alphabet = sorted(set(PLAY + OTHER_PLAY))
    assert "".join(alphabet[c] for c in contexts[0]) == PLAY[:16]
    assert "".join(alphabet[c] for c in targets[0]) == PLAY[1:17]


def test_training_text_ends_where_the_held_out_tenth_begins(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 900 + "b" * 100, encoding="utf-8")
    task = char_gpt(str(tmp_path), context=16)
    train, _ = gather(task.train(), torch.arange(num_samples(task.train())))
    held, _ = gather(task.validation(), torch.arange(num_samples(task.validation())))
    assert train.unique().tolist() == [0]  # type: ignore[no-untyped-call]
    assert held.unique().tolist() == [1]  # type: ignore[no-untyped-call]


def test_speakers_of_each_work_are_natural_keys(tmp_path: Path) -> None:
    task = char_gpt(str(write_plays(tmp_path / "plays")), context=16)
    assert task.keys is not None
    keys = task.keys(task.train())
    assert keys.dtype == np.int64
    assert len(keys) == num_samples(task.train())
    # Of the first work: nobody, KING, FOOL; of the second: nobody, Kin.
    assert np.unique(keys).tolist() == [0, 1, 2, 3, 4]
    assert keys[0] == 0
    assert keys[PLAY.index("comes") // 16] == 1
    assert keys[PLAY.index("of mine") // 16] == 2


def test_the_features_of_a_text_are_rows_of_unit_length(tmp_path: Path) -> None:
    task = char_gpt(str(write_plays(tmp_path / "plays")), context=32)
    assert task.features is not None
    features = task.features(task.train())
    assert len(features) == num_samples(task.train())
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(features, task.features(task.train()))


def test_validation_windows_are_thinned_evenly(tmp_path: Path) -> None:
    folder = str(write_plays(tmp_path / "plays"))
    everything = char_gpt(folder, context=16, validation=0).validation()
    few = char_gpt(folder, context=16, validation=5).validation()
    assert num_samples(few) == 5 < num_samples(everything)
    ends = gather(everything, torch.tensor([0, num_samples(everything) - 1]))
    for found, expected in zip(gather(few, torch.tensor([0, 4])), ends, strict=True):
        assert torch.equal(found, expected)


def test_a_model_without_memory_can_be_built_before_its_text_was_read(tmp_path: Path) -> None:
    task = char_gpt(str(write_plays(tmp_path / "plays")), 16, 2, 1, context=16, validation=5)
    with torch.device("meta"):
        model = task.model()
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_a_node_without_the_text_builds_the_same_model_from_the_alphabet(tmp_path: Path) -> None:
    folder = str(write_plays(tmp_path / "plays"))
    alphabet = "".join(set(PLAY + OTHER_PLAY))
    with_text = char_gpt(folder, 16, 2, 1, alphabet=alphabet)
    without = char_gpt(str(tmp_path / "none"), 16, 2, 1, alphabet=alphabet)
    shapes = [tensor.shape for tensor in char_gpt(folder, 16, 2, 1).model().state_dict().values()]
    for task in (with_text, without):
        assert [tensor.shape for tensor in task.model().state_dict().values()] == shapes
    assert data_digest(with_text.train()) == data_digest(char_gpt(folder, 16, 2, 1).train())


def test_a_character_outside_the_alphabet_is_refused(tmp_path: Path) -> None:
    folder = str(write_plays(tmp_path / "plays"))
    with pytest.raises(DataError, match=r"a\.txt holds 'A', which is not in the task's option"):
        char_gpt(folder, alphabet="abc").train()


def test_texts_that_cannot_be_used_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        char_gpt(str(tmp_path / "none")).train()
    with pytest.raises(FileNotFoundError, match=r"no \.txt files"):
        char_gpt(str(tmp_path)).train()
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(DataError, match=r"too short.*context = 128"):
        char_gpt(str(tmp_path)).train()
    (tmp_path / "short.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"short\.txt is not UTF-8"):
        char_gpt(str(tmp_path), context=8).train()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: digits(widths=[]), r"widths = \[\]"),
        (lambda: digits(widths=[16, 0]), r"widths = \[16, 0\]"),
        (lambda: digits_vit(width=10, heads=4), "a multiple of the heads"),
        (lambda: digits_vit(patch=3), "patches of 3 pixels do not tile"),
    ],
)
def test_sizes_that_make_no_model_are_refused_in_words(make: object, complaint: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=complaint):
        make().model()


def test_an_option_that_a_task_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(TaskError, match=r"do(es)? not take.*width"):
        load_task(TaskSpec("partsum.shared.tasks:digits", {"wdiths": [3]}))


def test_a_diverged_model_has_no_scores_though_the_tasks_loss_fails_over_it() -> None:
    """One node's update can make a base diverge; its evaluation must not end the run."""

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy(outputs.sigmoid(), targets)

    def samples() -> TensorDataset:
        return TensorDataset(torch.ones(4, 1), torch.ones(4, 1))

    task = Task(lambda: torch.nn.Linear(1, 1), samples, samples, loss)
    assert evaluate(lambda inputs: inputs, task, samples(), CPU).loss == pytest.approx(0.3133, 1e-3)
    assert math.isnan(evaluate(lambda inputs: inputs * math.nan, task, samples(), CPU).loss)

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("an error of the user's")

    with pytest.raises(RuntimeError, match="the user's"):
        evaluate(lambda inputs: inputs, replace(task, loss=broken), samples(), CPU)
