"""Image sets: one order whatever the source, augmentation by its definition, an error for what is bad."""

import errno
import hashlib
import re
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch

from lib import UserError, data

SHAPES = {name: shape for name, (shape, *_) in data.PREPARED.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no $FORESIGHT_DATA, and a torchvision that does not import."""
    monkeypatch.delenv("FORESIGHT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    return tmp_path / "cache" / "foresight"


def arrays(name="mnist", train=40, test=20):
    draw, classes = np.random.RandomState(0), data.PREPARED[name][1]
    made = {"classes": np.array([f"class {index}" for index in range(classes)])}
    for split, count in (("train", train), ("test", test)):
        made[f"{split}_images"] = draw.randint(0, 256, (count, *SHAPES[name])).astype(np.uint8)
        made[f"{split}_labels"] = draw.randint(0, classes, count)
    return made


def write(folder, name="mnist", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **{key: value for key, value in {**arrays(name), **changes}.items()
                                        if value is not None})
    return folder


def same(one, other):
    return all(torch.equal(getattr(one, key), getattr(other, key)) for key in data.ARRAYS[:4])


def left(cache):
    """What is in the cache, locks apart (whether they stay depends on the system)."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


# ---- canonical order

@pytest.mark.parametrize("name", SHAPES)
def test_a_shuffled_copy_loads_as_the_same_arrays(tmp_path, name):
    made, shuffled, draw = arrays(name), {}, np.random.RandomState(1)
    made["train_images"][5:9] = made["train_images"][4]  # the same image with several labels
    for split in ("train", "test"):
        order = draw.permutation(len(made[f"{split}_labels"]))
        shuffled |= {key: made[key][order] for key in (f"{split}_images", f"{split}_labels")}
    one = data.load(name, write(tmp_path / "one", name, **made))
    assert same(one, data.load(name, write(tmp_path / "two", name, **{**made, **shuffled})))


@pytest.mark.parametrize("name", SHAPES)
def test_the_order_is_that_of_the_hashes_of_the_stored_bytes(tmp_path, name):
    made = arrays(name)
    pairs = sorted((hashlib.sha256(image.tobytes()).digest(), made["train_labels"][index], index)
                   for index, image in enumerate(made["train_images"]))
    loaded = data.load(name, write(tmp_path, name, **made))
    images = made["train_images"][[index for _, _, index in pairs]].reshape(40, *SHAPES[name][:2], -1)
    assert np.array_equal(loaded.train_images.permute(0, 2, 3, 1), images)
    assert loaded.train_labels.tolist() == [label for _, label, _ in pairs]


def test_the_same_image_under_two_labels_goes_by_label(tmp_path):
    made = arrays()
    made["train_images"][:] = 7
    assert data.load("mnist", write(tmp_path, **made)).train_labels.tolist() == sorted(made["train_labels"])


@pytest.mark.parametrize("name, shape, count, std", [
    ("mnist", (1, 28, 28), 10, (0.3081,)),
    ("cifar10", (3, 32, 32), 10, (0.247, 0.243, 0.262)),
    ("cifar100", (3, 32, 32), 100, (0.267, 0.256, 0.276)),
])
def test_shapes_dtypes_and_statistics(tmp_path, name, shape, count, std):
    labels = arrays(name)["train_labels"].astype(np.uint8)
    loaded = data.load(name, write(tmp_path, name, train_labels=labels))
    assert loaded.train_images.shape == (40, *shape) and loaded.test_images.shape == (20, *shape)
    assert loaded.train_images.dtype == torch.uint8 and loaded.train_labels.dtype == torch.int64
    assert len(loaded.classes) == count and loaded.classes[3] == "class 3"
    assert len(loaded.mean) == shape[0] and loaded.std == std
    assert loaded.augmented == (name != "mnist") and not loaded.stand_in


# ---- pixels

@pytest.mark.parametrize("name", data.NAMES)
def test_normalise_is_its_formula(tmp_path, name):
    loaded = data.load(name, write(tmp_path, name) if name in SHAPES else None)
    before, channels = loaded.train_images[:8].clone(), len(loaded.mean)
    mean, std = (np.array(values).reshape(channels, 1, 1) for values in (loaded.mean, loaded.std))
    result = loaded.normalise(loaded.train_images[:8])
    floats = loaded.train_images[:8].float()
    assert torch.equal(loaded.normalise(floats), result) and torch.equal(floats, loaded.train_images[:8].float())
    assert result.dtype == torch.float32 and torch.equal(loaded.train_images[:8], before)
    assert np.allclose(result.numpy(), (before.numpy() / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", data.STAND_INS)
def test_normalised_training_images_of_a_stand_in_have_mean_0_and_deviation_1(name):
    loaded = data.load(name)
    pixels = loaded.normalise(loaded.train_images).transpose(0, 1).flatten(1).double()
    assert pixels.mean(1).abs().max() < 1e-3 and (pixels.std(1) - 1).abs().max() < 1e-3


def slowly(image, flip, top, left):
    """An image flipped, surrounded by four zeros, and cut out, one pixel at a time."""
    channels, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + top - 4, x + left - 4
            if 0 <= row < height and 0 <= column < width:
                result[:, y, x] = image[:, row, width - 1 - column if flip else column]
    return result


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 5, 7)])
def test_flip_and_crop_is_its_definition_for_every_flip_and_offset(shape):
    choices = torch.cartesian_prod(torch.arange(2), torch.arange(9), torch.arange(9))
    torch.manual_seed(0)
    images = torch.randint(1, 256, (len(choices), *shape), dtype=torch.uint8)
    fast = data.flip_and_crop(images, *choices.T)
    assert fast.dtype == torch.uint8 and fast.shape == images.shape
    for image, result, (flip, top, left) in zip(images, fast, choices.tolist(), strict=True):
        assert torch.equal(result, slowly(image, flip, top, left))


def test_augment_draws_every_flip_and_offset_equally_often():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    choices = torch.cartesian_prod(torch.arange(2), torch.arange(9), torch.arange(9))
    every = data.flip_and_crop(image.expand(162, 1, 8, 8), *choices.T).flatten(1)
    drawn = data.augment(image.expand(16200, 1, 8, 8), torch.Generator().manual_seed(0)).flatten(1)
    counts = (drawn[:, None] == every).all(2).sum(0)
    assert counts.sum() == 16200 and counts.min() > 60 and counts.max() < 140  # 100 each, four deviations


def test_augment_depends_on_its_generator_alone():
    images = data.load("shapes10").train_images[:64]
    before = images.clone()
    one, two, other = (data.augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other) and torch.equal(images, before)


# ---- stand-ins

@pytest.mark.parametrize("name, train, test, shape, classes", [
    ("digits", 1442, 355, (1, 28, 28), 10), ("shapes10", 2000, 500, (3, 32, 32), 10),
    ("shapes100", 4000, 1000, (3, 32, 32), 100),
])
def test_stand_ins(name, train, test, shape, classes):
    made = data.load(name)
    assert made.train_images.shape == (train, *shape) and made.test_images.shape == (test, *shape)
    assert made.train_images.dtype == made.test_images.dtype == torch.uint8
    assert made.stand_in and made.augmented == (name != "digits") and len(set(made.classes)) == classes
    for labels in (made.train_labels, made.test_labels):
        assert sorted(set(labels.tolist())) == list(range(classes))
    shares = 100 * made.test_labels.bincount().sort(descending=True).values / test
    assert data.constant_answer(name) == pytest.approx(float(shares[0]))
    assert data.constant_answer(name, "top5") == pytest.approx(float(shares[:5].sum()))


# These images are part of what a cell's key means: if they change, experiment.VERSION must rise.
@pytest.mark.parametrize("name, digest", [
    ("digits", "6c2e1640150d5885"), ("shapes10", "a91d147d29509c30"), ("shapes100", "6885ccaeb64af0d1"),
])
def test_stand_ins_are_the_same_everywhere(name, digest):
    made = data.load(name)
    content = b"".join(getattr(made, key).numpy().tobytes() for key in data.ARRAYS[:4])
    assert hashlib.sha256(content).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", data.STAND_INS)
def test_no_test_image_of_a_stand_in_is_a_training_image(name):
    made = data.load(name)
    images = torch.cat([made.train_images, made.test_images])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


def test_digits_are_the_bundled_ones_enlarged():
    from sklearn.datasets import load_digits
    made = data.load("digits")
    small = torch.cat([made.train_images, made.test_images])[:, 0, 3:26:3, 3:26:3].numpy() * 16.0 / 255
    bundled = load_digits().images
    assert sorted(np.rint(small).reshape(-1, 64).tolist()) == sorted(bundled.reshape(-1, 64).tolist())


@pytest.mark.parametrize("name, above", [("digits", 0.8), ("shapes10", 0.4)])
def test_stand_ins_can_be_learned(name, above):
    """A small network of two convolutions is far above chance (0.1) after a few epochs."""
    made, generator = data.load(name), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(len(made.mean), 8, 5, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, 2), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.LazyLinear(10))
    train, test = made.normalise(made.train_images), made.normalise(made.test_images)
    model(train[:2])
    optimiser = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for index in torch.cat([torch.randperm(len(train), generator=generator) for _ in range(6)]).split(64):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(train[index]), made.train_labels[index]).backward()
        optimiser.step()
    accuracy = (model.eval()(test).argmax(1) == made.test_labels).float().mean().item()
    assert above < accuracy < 0.99, accuracy


# ---- what a caller may do

@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_caller_cannot_harm_what_the_next_one_gets(tmp_path, name):
    root = write(tmp_path)
    first = data.load(name, root)
    kept = first.train_images.clone()
    first.train_images.zero_()
    first.test_labels.numpy()[:] = 3
    assert torch.equal(data.load(name, root).train_images, kept)
    assert len(set(data.load(name, root).test_labels.tolist())) > 1


def test_a_file_that_changes_is_read_again(tmp_path):
    before = data.load("mnist", write(tmp_path))
    after = data.load("mnist", write(tmp_path, train_images=255 - arrays()["train_images"]))
    assert not same(before, after)


def test_first_takes_the_first_training_images_and_the_whole_test_set():
    whole = data.load("digits")
    part = whole.first(10)
    assert torch.equal(part.train_images, whole.train_images[:10]) and len(part.train_labels) == 10
    assert torch.equal(part.test_images, whole.test_images) and part.mean == whole.mean
    assert whole.first(None) is whole


@pytest.mark.parametrize("count", [0, -1, 1443])
def test_first_refuses_what_is_not_there(count):
    with pytest.raises(UserError, match="digits has 1442 training images"):
        data.load("digits").first(count)


def test_to_moves_every_tensor():
    moved = data.load("digits").to("meta")
    assert {getattr(moved, key).device.type for key in data.ARRAYS[:4]} == {"meta"} and moved.name == "digits"


# ---- where a set is looked for

def test_root_wins_over_the_environment_and_that_over_the_cache(tmp_path, cache, monkeypatch):
    folders = [tmp_path / "root", tmp_path / "environment", cache]
    for value, folder in enumerate(folders):
        write(folder, train_images=np.full((40, 28, 28), value, np.uint8))
    assert data.load("mnist").train_images.max() == 2
    monkeypatch.setenv("FORESIGHT_DATA", str(folders[1]))
    assert data.load("mnist").train_images.max() == 1
    assert data.load("mnist", str(folders[0])).train_images.max() == 0


@pytest.mark.parametrize("way", ["root", "environment"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_named_folder_without_the_file_is_an_error_not_a_download(tmp_path, cache, monkeypatch, way, name):
    write(cache, name)
    pretend(monkeypatch)
    monkeypatch.setenv("FORESIGHT_DATA", str(tmp_path) if way == "environment" else "")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / f"{name}.npz"))):
        data.load(name, str(tmp_path) if way == "root" else None)


@pytest.mark.parametrize("name", ["imagenet", "", "MNIST", None])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(UserError, match="mnist, cifar10, cifar100, digits, shapes10, shapes100"):
        data.load(name)


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_falls_back_to_a_stand_in(monkeypatch, name):
    monkeypatch.setattr(data, "_stand_in", lambda name: pytest.fail("a stand-in was made"))
    with pytest.raises(UserError):
        data.load(name)


# ---- damaged files

@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    path = write(tmp_path) / "mnist.npz"
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"mnist\.npz cannot be read \(it is no .npz archive"):
        data.load("mnist", tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path):
    path = write(tmp_path) / "mnist.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mnist\.npz cannot be read"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("key", data.ARRAYS)
def test_a_missing_array_is_named(tmp_path, key):
    with pytest.raises(UserError, match=rf"mnist\.npz.*lacks {key}"):
        data.load("mnist", write(tmp_path, **{key: None}))


@pytest.mark.parametrize("changes, said", [
    ({"train_images": np.zeros((40, 28, 28), "f4")}, "train_images must be uint8 .N, 28, 28., not float32"),
    ({"test_images": np.zeros((20, 28, 28, 1), np.uint8)}, "test_images must be uint8"),
    ({"train_images": np.zeros((40, 32, 32), np.uint8)}, "train_images must be uint8"),
    ({"train_images": np.uint8(0)}, "train_images must be uint8"),
    ({"test_images": np.zeros((0, 28, 28), np.uint8)}, "test_images must be uint8"),
    ({"train_labels": np.zeros(40)}, "train_labels must be integers"),
    ({"train_labels": np.zeros((40, 1), int)}, "train_labels must be integers"),
    ({"test_labels": np.zeros(19, int)}, "test_labels must be integers"),
    ({"train_labels": np.full(40, 10)}, "train_labels must lie in 0 to 9, not in 10 to 10"),
    ({"test_labels": np.full(20, -1)}, "test_labels must lie in 0 to 9"),
    ({"classes": np.array(["one", "two"])}, "classes must be 10 names"),
    ({"classes": np.array([{}] * 10, dtype=object)}, "cannot be read"),
])
def test_wrong_arrays_are_described(tmp_path, changes, said):
    with pytest.raises(UserError, match=rf"mnist\.npz .*{said}"):
        data.load("mnist", write(tmp_path, **changes))


# ---- download

def pretend(monkeypatch, error=None):
    """A torchvision that holds `arrays` as the real one would, or fails to download."""
    def dataset(name):
        def make(folder, train, download=False):
            if error and download:
                raise error
            split, made = "train" if train else "test", arrays(name)
            images, labels = made[f"{split}_images"], made[f"{split}_labels"]
            if name == "mnist":  # it holds tensors, CIFAR an array and a list
                classes = [f"{index} - digit" for index in range(10)]
                return types.SimpleNamespace(data=torch.from_numpy(images), targets=torch.from_numpy(labels),
                                             classes=classes)
            classes = made["classes"].tolist()
            return types.SimpleNamespace(data=images, targets=labels.tolist(), classes=classes)
        return make
    datasets = types.SimpleNamespace(**{title: dataset(name) for name, (*_, title) in data.PREPARED.items()})
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))


@pytest.mark.parametrize("name", SHAPES)
def test_a_download_fills_the_cache_and_gives_what_a_file_gives(tmp_path, cache, monkeypatch, name):
    pretend(monkeypatch)
    downloaded = data.load(name)
    assert same(downloaded, data.load(name, write(tmp_path / "file", name)))
    assert downloaded.classes[7] == ("7" if name == "mnist" else "class 7")
    with np.load(cache / f"{name}.npz") as kept:
        assert set(kept) == set(data.ARRAYS) and kept["train_images"].dtype == np.uint8
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert same(downloaded, data.load(name)), "the second time comes from the cache"
    assert left(cache) == [f"{name}.npz"]


def test_a_torchvision_that_is_not_there_is_one_sentence_with_what_to_install(cache):
    with pytest.raises(UserError, match="install the torchvision that belongs to torch") as caught:
        data.load("cifar10")
    assert "\n" not in str(caught.value) and str(cache) in str(caught.value) and not cache.exists()


def test_a_torchvision_of_another_torch_is_one_sentence_too(monkeypatch):
    class Mismatched(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setitem(sys.modules, "torchvision", Mismatched("torchvision"))
    with pytest.raises(UserError, match="nms does not exist.: install the torchvision that belongs to torch"):
        data.load("mnist")


@pytest.mark.parametrize("error", [
    URLError("no route to host"), RuntimeError("Error downloading images"), ConnectionResetError("reset"),
])
def test_no_network_is_an_error_that_leaves_nothing_behind(cache, monkeypatch, error):
    pretend(monkeypatch, error)
    with pytest.raises(UserError, match="mnist could not be downloaded .*connect to the network"):
        data.load("mnist")
    assert left(cache) == []


def test_a_full_disk_while_caching_leaves_no_half_file(cache, monkeypatch):
    def fill_up(file, **_):
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")
    pretend(monkeypatch)
    monkeypatch.setattr(np, "savez", fill_up)
    with pytest.raises(UserError, match="No space left on device.*XDG_CACHE_HOME"):
        data.load("mnist")
    assert left(cache) == []


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    pretend(monkeypatch)
    with pytest.raises(UserError, match="cannot be kept in"):
        data.load("mnist")


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    assert data.cache_folder() == tmp_path / "cache" / "foresight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(data.Path, "home", lambda: tmp_path)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert data.cache_folder() == tmp_path / ".cache" / "foresight"
