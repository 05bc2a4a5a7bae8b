"""The corpus: every model of the published conversion table, with its data and the options that it needs.

`models()` lists them without fetching or building anything; a model's files come when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from tests.models import build
from tests.models.build import DataFiles
from tests.models.fetch import fetch
from tests.models.pipelines import PIPELINES

__all__ = ["LIGHT_NETS", "Model", "model", "models"]


@dataclass(frozen=True)
class Model:
    """A model of the corpus.

    Attributes:
        id: What the table calls it.
        kind: Of source, as `edgekit.sources.identify` names it.
        task: As `edgekit convert --task` takes it.
        make: Returns the model's file or folder and its data; fetches and builds what is missing.
        quantized: The precision that the source itself computes in, where that is not float: its own answers are
            that coarse, so whatever is made of it is compared at that precision's limits.
        soak: Whether getting it takes more than 20 MB of download or 20 s.
    """

    id: str
    kind: str
    task: str
    make: Callable[[], tuple[Path, DataFiles]] = field(repr=False)
    quantized: str = ""
    soak: bool = False

    @property
    def path(self) -> Path:
        """The model's file or folder."""
        return _made(self)[0]

    @property
    def calibration(self) -> Path | None:
        """Typical inputs: `.npz`, batch first; None where the inputs share no batch axis."""
        return _made(self)[1].calibration

    @property
    def evaluation(self) -> Path | None:
        """Inputs with labels under `y`: `.npz`; None where nobody labelled any."""
        return _made(self)[1].evaluation

    @property
    def steps(self) -> Path | None:
        """Whole feeds along the first axis: `.npz`; only for models whose inputs share no batch axis."""
        return _made(self)[1].steps

    @property
    def options(self) -> tuple[str, ...]:
        """More words for `edgekit convert`: an input's shape, a preprocessing file."""
        return _made(self)[1].options


@cache
def _made(entry: Model) -> tuple[Path, DataFiles]:
    return entry.make()


#: D14: name to its input's name. They carry one constant for all weights of a layer, so they are small.
LIGHT_NETS = {
    "bvlc_alexnet": "data_0",
    "densenet121": "data_0",
    "inception_v1": "data_0",
    "inception_v2": "data_0",
    "resnet50": "gpu_0/data_0",
    "shufflenet": "gpu_0/data_0",
    "squeezenet": "data_0",
    "vgg19": "data_0",
    "zfnet512": "gpu_0/data_0",
}

#: D5, one network in three kinds of file, with what each calls its input.
_PITCH_FILES = (
    ("d5-savedmodel", "savedmodel", "nmp", "input_2"),
    ("d5-tflite", "tflite", "nmp.tflite", "input_2"),
    ("d5-onnx", "onnx", "nmp.onnx", "serving_default_input_2:0"),
)
#: D6's ONNX files, by what the table calls them.
_VOICE_FILES = {
    "d6": "silero_vad.onnx",
    "d6-op15": "silero_vad_16k_op15.onnx",
    "d6-sequence": "silero_vad_16k_sequence.onnx",
    "d6-half": "silero_vad_half.onnx",
    "d6-ifless": "silero_vad_op18_ifless.onnx",
    "d6-openvino": "silero_vad_openvino_16k.onnx",
}
#: D11's files, with the height and width of the lines they get.
_READER_FILES = (
    ("d11-det", "ch_PP-OCRv4_det_infer.onnx", "other", 160, 320),
    ("d11-rec", "ch_PP-OCRv4_rec_infer.onnx", "other", 48, 320),
    ("d11-cls", "ch_ppocr_mobile_v2.0_cls_infer.onnx", "classification", 48, 192),
)


def models() -> list[Model]:
    """Return every model of the corpus, in the table's order."""
    return list(_all().values())


def model(name: str) -> Model:
    """Return one model by its id.

    Raises:
        KeyError: There is none; the message names those there are.
    """
    if name not in _all():
        raise KeyError(f"no model {name!r}; there are {', '.join(_all())}")
    return _all()[name]


@cache
def _all() -> dict[str, Model]:
    return {entry.id: entry for entry in (*_digits(), *_fetched(), *_voices(), *_lights(), *_pipelines())}


def _digits() -> Iterator[Model]:
    yield Model("reference-cnn", "keras", "classification", _reference_cnn)
    yield Model("d2", "torch-export", "classification", _digit_program)
    yield Model("detector", "keras", "detection", _detector, soak=True)


def _reference_cnn() -> tuple[Path, DataFiles]:
    from tests.corpus import reference_cnn

    cnn = reference_cnn()
    return cnn.model, DataFiles(cnn.calibration, cnn.evaluation)


def _digit_program() -> tuple[Path, DataFiles]:
    return build.digit_program(), build.digit_data()


def _detector() -> tuple[Path, DataFiles]:
    from tests.corpus import reference_detector

    detector = reference_detector()
    options = ("--preprocess", str(detector.preprocess), "--labels", str(detector.labels))
    return detector.model, DataFiles(detector.calibration, detector.evaluation, options=options)


def _fetched() -> Iterator[Model]:
    from tests.models import sentiment

    yield Model("d4-h5", "keras2", "classification", partial(_emotion, "emotion_model.hdf5", "input_1"))
    yield Model(
        "d4-tflite",
        "tflite",
        "classification",
        partial(_emotion, "emotion_model_quantized.tflite", "x"),
        quantized="int8-dynamic",
    )
    for id_, kind, file, name in _PITCH_FILES:
        yield Model(id_, kind, "other", partial(_pitch, file, name))
    yield Model("d7", "onnx", "classification", _file_types)
    yield Model("d8", "onnx", "other", _encoder, soak=True)
    yield Model("d8-sentiment", "onnx", "classification", sentiment.sentiment, soak=True)
    for id_, file, task, height, width in _READER_FILES:
        yield Model(id_, "onnx", task, partial(_reader, file, height, width))
    yield Model("d12", "keras", "other", _sleep)


def _emotion(file: str, name: str) -> tuple[Path, DataFiles]:
    return fetch("D4") / "fer" / "data" / file, build.emotion_data(name)


def _pitch(file: str, name: str) -> tuple[Path, DataFiles]:
    return fetch("D5") / "basic_pitch" / "saved_models" / "icassp_2022" / file, build.note_data(name)


def _file_types() -> tuple[Path, DataFiles]:
    return fetch("D7") / "magika" / "models" / "standard_v3_3" / "model.onnx", build.file_type_data()


def _encoder() -> tuple[Path, DataFiles]:
    from tests.models import sentiment

    return sentiment.encoder(), sentiment.encoder_data()


def _reader(file: str, height: int, width: int) -> tuple[Path, DataFiles]:
    return fetch("D11") / "rapidocr_onnxruntime" / "models" / file, build.text_data(height, width)


def _sleep() -> tuple[Path, DataFiles]:
    return build.sleep_model(), build.sleep_data()


def _voices() -> Iterator[Model]:
    for id_, file in _VOICE_FILES.items():
        yield Model(id_, "onnx", "other", partial(_voice, file))
    yield Model("d6-jit", "torchscript", "other", _voice_script)


def _voice(file: str) -> tuple[Path, DataFiles]:
    path = fetch("D6") / "silero_vad" / "data" / file
    return path, build.speech_data(path)


def _voice_script() -> tuple[Path, DataFiles]:
    return build.voice_script(), build.pulse_data()


def _lights() -> Iterator[Model]:
    for net, name in LIGHT_NETS.items():
        yield Model(f"light-{net}", "onnx", "other", partial(_light, net, name))


def _light(net: str, name: str) -> tuple[Path, DataFiles]:
    spec = find_spec("onnx")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "backend" / "test" / "data" / "light"
    return folder / f"light_{net}.onnx", build.light_net_data(name)


def _pipelines() -> Iterator[Model]:
    for name, pipeline in PIPELINES.items():
        yield Model(name, "sklearn", pipeline.task, partial(build.pipeline_files, name))
