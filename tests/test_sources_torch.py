from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConversionError, InvalidFileError, UsageError
from edgekit.sources import SourceOptions, check_options, identify
from edgekit.sources.torch import TorchExportSource, TorchScriptSource, load_program
from tests.conversions import environment
from tests.torch_attacks import ATTACKS, make, rewrite
from tests.torch_models import SHAPE, convolutional, digits, exported, scripted, two_inputs

pytestmark = pytest.mark.convert
pytest.importorskip("torch")

TRUSTED = SourceOptions(trust_pickle=True)
#: What plain torch 2.13 does not run, as these files are made, and EdgeKit refuses all the same.
HARMLESS = {"an object of C++", "an operator", "the name of a parameter", "a tree"}


@pytest.fixture(autouse=True)
def one_number_of_threads() -> Any:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Programs


def test_a_program_under_its_own_names() -> None:
    assert identify(exported()) == "torch-export"
    source = TorchExportSource(exported(), SourceOptions())
    assert [(s.name, s.dtype, s.shape) for s in source.inputs] == [("input", "float32", (-1, *SHAPE))]
    assert [(s.name, s.dtype, s.shape) for s in source.outputs] == [("output_0", "float32", (-1, 10))]
    assert source.notes == ()
    assert source.tools == {"torch": "2.13.0+cpu"}


def test_a_program_answers_as_its_model() -> None:
    import torch

    images, labels = digits(64, 1)
    answer = TorchExportSource(exported(), SourceOptions()).run({"input": images})["output_0"]
    with torch.inference_mode():
        expected = convolutional()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    assert (answer.argmax(1) == labels).mean() > 0.9


def test_nested_inputs_and_outputs_are_flat() -> None:
    source = TorchExportSource(two_inputs(), SourceOptions())
    assert [s.name for s in source.inputs] == ["left", "rest_a", "rest_b", "scale"]
    feed = {s.name: np.full((1, 3), i + 1, np.float32) for i, s in enumerate(source.inputs)}
    answer = source.run(feed)
    assert {name: float(array[0, 0]) for name, array in answer.items()} == {
        "output_0": 7.0, "output_1": 7.0, "output_2": 1.0,
    }  # fmt: skip


def test_a_program_in_training_mode(tmp_path: Path) -> None:
    import torch
    from torch import nn

    for name, layer in {"batch_norm": nn.BatchNorm1d(4), "dropout": nn.Dropout(0.5)}.items():
        path = tmp_path / f"{name}.pt2"
        torch.export.save(torch.export.export(layer.train(), (torch.zeros(3, 4),)), path)
        with pytest.raises(ConversionError, match=rf"training mode: aten\.{name}.* Call model\.eval\(\)"):
            TorchExportSource(path, SourceOptions())
        torch.export.save(torch.export.export(layer.eval(), (torch.zeros(3, 4),)), path)
        assert TorchExportSource(path, SourceOptions()).outputs[0].shape == (3, 4)


def test_a_program_that_changes_itself(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.count += 1
            return x + self.count

    path = tmp_path / "counter.pt2"
    torch.export.save(torch.export.export(Counter().eval(), (torch.zeros(1, 2),)), path)
    with pytest.raises(ConversionError, match="changes its own buffer 'count'"):
        TorchExportSource(path, SourceOptions())


def test_a_program_that_draws_random_numbers_says_so(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Noisy(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.randn_like(x)

    path = tmp_path / "noisy.pt2"
    torch.export.save(torch.export.export(Noisy().eval(), (torch.zeros(1, 2),)), path)
    (note,) = TorchExportSource(path, SourceOptions()).notes
    assert "draws random numbers (aten.randn_like.default)" in note


# Hostile files


@pytest.fixture(scope="module")
def believed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The attacks that work on plain torch."""
    folder = tmp_path_factory.mktemp("plain")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.torch_attacks", exported(), folder],
        check=True, capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    return set(done.stdout.splitlines())


def test_the_attacks_are_real(believed: set[str]) -> None:
    assert believed == set(ATTACKS) - HARMLESS


@pytest.mark.parametrize("name", ATTACKS)
def test_no_part_of_a_program_runs_code(tmp_path: Path, name: str) -> None:
    path, marker = make(exported(), tmp_path, name)
    if name == "a guard":  # dropped, since guards only refuse inputs
        TorchExportSource(path, SourceOptions()).run({"input": np.zeros((1, *SHAPE), np.float32)})
    else:
        with pytest.raises(InvalidFileError, match=r"may run code when it is read: .*--trust-pickle"):
            TorchExportSource(path, SourceOptions())
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("sample inputs", "data/sample_inputs/model.pt"),
        ("weights as a whole", "data/weights/model.pt"),
        ("a weight", "data/weights/weight_"),
        ("a constant", "data/constants/tensor_0"),
        ("an opaque object", "data/constants/opaque_obj_0"),
        ("a size", "models/model.json"),
    ],
)
def test_a_refusal_names_the_member(tmp_path: Path, name: str, member: str) -> None:
    path, _ = make(exported(), tmp_path, name)
    with pytest.raises(InvalidFileError) as refusal:
        load_program(path, trusted=False)
    assert f"{path.name}: {member}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_trusted_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("torch"), "disabled", True)  # torch words its warning wrongly
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    path, marker = make(exported(), tmp_path, "sample inputs")
    source = TorchExportSource(path, TRUSTED)
    assert marker.exists()
    assert source.run({"input": np.zeros((1, *SHAPE), np.float32)})["output_0"].shape == (1, 10)


def test_torch_is_never_asked_for_unrestricted_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with every look at the file left out, torch's own fallback stays restricted."""
    path, marker = make(exported(), tmp_path, "sample inputs")
    monkeypatch.setattr("edgekit.sources.torch.check_program", lambda archive: None)
    with pytest.raises(InvalidFileError, match="torch cannot read"):
        load_program(path, trusted=False)
    assert not marker.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_users_own_setting_of_torch_is_overruled_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, marker = make(exported(), tmp_path, "weights as a whole")
    with pytest.raises(InvalidFileError):
        load_program(path, trusted=False)
    assert not marker.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_the_old_format_is_never_read(tmp_path: Path) -> None:
    """`torch.export.load` turns to it when a file does not please the reader of today."""
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        for name in ("exported_program.json", "state_dict.pt", "constants.pt", "example_inputs.pt"):
            archive.writestr(f"serialized_{name}", b"")
    with pytest.raises(InvalidFileError, match=r"torch 2\.7 or earlier.*Export the model again"):
        identify(path)
    with pytest.raises(InvalidFileError):
        load_program(path, trusted=False)


def test_machine_code_is_refused_trusted_or_not(tmp_path: Path) -> None:
    path = rewrite(exported(), tmp_path / "a.pt2", {"data/aotinductor/model/a.so": b"\x7fELF"})
    for options in (SourceOptions(), TRUSTED):
        with pytest.raises(InvalidFileError, match="machine code made by AOTInductor"):
            TorchExportSource(path, options)


def test_a_member_twice(tmp_path: Path) -> None:
    """Two readers of one archive could take two different ones."""
    path = tmp_path / "twice.pt2"
    path.write_bytes(exported().read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(InvalidFileError, match=r"has the member .* twice"):
        load_program(path, trusted=False)


def test_an_archive_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/version", "3")
        archive.writestr("bomb/models/model.json", b" " * (64 << 20))
    with pytest.raises(InvalidFileError, match="out of all measure"):
        load_program(path, trusted=False)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_programs_are_told(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(exported().read_bytes())
    for place in random.integers(0, len(data), 12):
        data[place] = random.integers(0, 256)
    path = tmp_path / "damaged.pt2"
    path.write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)] if seed % 2 else data)
    try:
        source = TorchExportSource(path, SourceOptions())
    except (InvalidFileError, ConversionError):
        return
    assert source.run({"input": np.zeros((1, *SHAPE), np.float32)})["output_0"].shape == (1, 10)


# TorchScript


def test_torchscript() -> None:
    assert identify(scripted()) == "torchscript"
    source = TorchScriptSource(scripted(), SourceOptions(input_shapes={"input_0": (-1, *SHAPE)}))
    assert [(s.name, s.dtype, s.shape) for s in source.inputs] == [("input_0", "float32", (-1, *SHAPE))]
    assert [(s.name, s.dtype, s.shape) for s in source.outputs] == [("output_0", "float32", (-1, 10))]
    images, _ = digits(8, 2)
    same = TorchExportSource(exported(), SourceOptions()).run({"input": images})["output_0"]
    np.testing.assert_allclose(source.run({"input_0": images})["output_0"], same, atol=1e-6)


def test_torchscript_needs_shapes() -> None:
    with pytest.raises(UsageError, match=r"the shape of its input input_0.*--input-shape input_0="):
        TorchScriptSource(scripted(), SourceOptions())
    with pytest.raises(UsageError, match="the model has no input 'x': expected input_0"):
        TorchScriptSource(scripted(), SourceOptions(input_shapes={"x": (1,)}))
    with pytest.raises(ConversionError, match=r"does not run on inputs of these shapes: .*\[1, 5\]"):
        TorchScriptSource(scripted(), SourceOptions(input_shapes={"input_0": (1, 5)}))


def script(path: Path, module: Any) -> Path:
    import torch

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(module).save(str(path))
    return path


def test_torchscript_of_indices(tmp_path: Path) -> None:
    from torch import nn

    path = script(tmp_path / "words.pt", nn.Embedding(50, 4).eval())
    source = TorchScriptSource(path, SourceOptions(input_shapes={"input_0": (-1, 7)}))
    assert source.inputs[0].dtype == "int64"
    assert source.outputs[0].shape == (-1, 7, 4)


def test_a_pickle_in_torchscript_calls_no_python(tmp_path: Path) -> None:
    """`torch.jit.load` reads pickles in C++, which knows no Python function."""
    import pickle

    from tests.torch_attacks import Touch

    for name in ("data.pkl", "constants.pkl", "traced_inputs.pkl", "code/__torch__.py.debug_pkl"):
        marker = tmp_path / "made"
        path = rewrite(scripted(), tmp_path / "a.pt", {name: pickle.dumps(Touch(marker), 2)})
        try:
            TorchScriptSource(path, SourceOptions(input_shapes={"input_0": (-1, *SHAPE)}))
        except InvalidFileError as error:
            assert "torch cannot read a.pt" in str(error)  # noqa: PT017  # only some are read at all
        assert not marker.exists()


def test_torchscript_that_writes_files(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Saver(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "made.bin")
            return x

    class Mapper(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_file("made.bin", True, 4)[0]

    torch._jit_internal  # noqa: B018  # both names are looked up when they are scripted
    for module, word in ((Saver(), "save"), (Mapper(), "from_file")):
        path = script(tmp_path / "writes.pt", module)
        options = SourceOptions(input_shapes={"input_0": (2,)})
        with pytest.raises(
            InvalidFileError, match=f"may write files when it is read or run: it says '{word}'"
        ):
            TorchScriptSource(path, options)


# What is neither


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl"])
def test_weights_alone_are_refused_with_what_to_export(tmp_path: Path, suffix: str) -> None:
    import torch

    path = tmp_path / f"weights{suffix}"
    for thing in (convolutional().state_dict(), convolutional()):
        torch.save(thing, path)
        with pytest.raises(InvalidFileError, match=r"without a graph.*torch\.export\.save\(") as refusal:
            identify(path)
        assert "torch.export.export(model.eval(), (example,)), 'model.pt2')" in str(refusal.value)


def test_old_weights_that_are_no_archive(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "weights.pth"
    torch.save(convolutional().state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidFileError, match="without a graph"):
        identify(path)


def test_options_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="--input-shape means nothing"):
        check_options("torch-export", SourceOptions(input_shapes={"x": (1,)}))
    with pytest.raises(UsageError, match="--signature means nothing"):
        check_options("torchscript", SourceOptions(signature="x"))
    check_options("torchscript", SourceOptions(input_shapes={"x": (1,)}, trust_pickle=True))
