"""Kinds of files that are not read, each with the line that converts it."""

from typing import NamedTuple


class Foreign(NamedTuple):
    """A kind of file: what it is, what to do about it, and how its name ends and its content begins."""

    what: str
    remedy: str  # with {file} and {stem} for the name
    endings: tuple[str, ...] = ()
    begins: tuple[bytes, ...] = ()
    offsets: tuple[int, ...] = (0,)
    read_as: tuple[str, ...] = ()  # endings under which it would be read


def converting(imports: str, code: str, more: str = "") -> str:
    return f"convert it, {more}with: import {imports}; {code}"


def _unpacking(module: str) -> str:
    code = f'pathlib.Path("{{stem}}").write_bytes({module}.decompress(pathlib.Path("{{file}}").read_bytes()))'
    return converting(f"{module}, pathlib", code)


NPY = 'np.save("{stem}.npy", %s)'
NPZ = 'np.savez("{stem}.npz", **%s)'
_OF_DICT = NPZ + "  # of a dict of arrays"
_TRUSTED = "if you trust it, "
PANDAS = "numpy as np, pandas as pd"
TABLE = NPY % 'pd.read_%s("{file}").to_numpy("float32")'
DATASET = NPY % 'datasets.%s("{file}").with_format("numpy")["features"]'
AS_JSON = 'json.loads(pathlib.Path("{file}").read_text())'
PICTURES = "the audit reads activations: run the network on the pictures, and write its layers with collapsemeter.activations.Writer"
WEIGHTS = "run the model, and write its layers with collapsemeter.activations.Writer"
UNPACK = "unpack it, and pass what is in it"
TORCH = Foreign(
    "a PyTorch checkpoint",
    converting(
        "torch, safetensors.torch as s",
        's.save_file({k: v.contiguous() for k, v in torch.load("{file}", map_location="cpu").items()}, '
        '"{stem}.safetensors")  # a tensor x alone: {"features": x}',
    ),
    (".pt", ".pth", ".ckpt", ".bin"),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",),
)
_PICKLED = 'pickle.loads(pathlib.Path("{file}").read_bytes())'
PICKLE = Foreign(
    "a pickle",
    converting("numpy as np, pathlib, pickle", _OF_DICT % _PICKLED, _TRUSTED),
    (".pkl", ".pickle"),
)
JOBLIB = Foreign(
    "a pickle of joblib",
    converting("numpy as np, joblib", _OF_DICT % 'joblib.load("{file}")', _TRUSTED),
    (".joblib",),
)
_RECORDS = (
    '[tf.io.parse_single_example(r, {"features": tf.io.FixedLenFeature([d], tf.float32)})["features"] '
    'for r in tf.data.TFRecordDataset("{file}")]'
)
TFRECORD = Foreign(
    "a TFRecord file",
    converting("numpy as np, tensorflow as tf", NPY % _RECORDS),
    (".tfrecord", ".tfrecords"),
)
KERAS = Foreign("a Keras model", WEIGHTS, (".keras",))
_MATLAB_5 = '{k: v for k, v in scipy.io.loadmat("{file}").items() if k[0] != "_"}'
_MATLAB_7 = 'f = h5py.File("{file}"); ' + NPZ % '{k: f[k][()].T for k in f if k[0] != "#"}'
# The first kind whose beginning a file has is the file's kind.
KINDS = (
    Foreign("a .npy array", "name it {stem}.npy", begins=(b"\x93NUMPY",), read_as=(".npy",)),
    Foreign(
        "a MATLAB file of version 5",
        converting("numpy as np, scipy.io", NPZ % _MATLAB_5),
        (".mat",),
        (b"MATLAB 5.0",),
    ),
    Foreign(
        "a MATLAB file of version 7.3, whose arrays are transposed in HDF5",
        converting("h5py, numpy as np", _MATLAB_7),
        begins=(b"MATLAB 7.3",),
    ),
    Foreign(
        "an HDF5 file",
        "name it {stem}.h5",
        begins=(b"\x89HDF\r\n\x1a\n",),
        offsets=(0, 512, 1024, 2048, 4096),
        read_as=(".h5", ".hdf5"),
    ),
    Foreign(
        "a Parquet table", converting(PANDAS, TABLE % "parquet"), (".parquet", ".pq"), (b"PAR1",)
    ),
    Foreign(
        "an Arrow table (Feather)",
        converting(PANDAS, TABLE % "feather"),
        (".feather",),
        (b"ARROW1", b"FEA1"),
    ),
    Foreign(
        "an Arrow stream, as datasets are cached in",
        converting("datasets, numpy as np", DATASET % "Dataset.from_file"),
        (".arrow",),
        (b"\xff\xff\xff\xff",),
    ),
    TORCH,
    PICKLE,
    JOBLIB,
    TFRECORD,
    KERAS,
    Foreign("an ONNX model", WEIGHTS, (".onnx",)),
    Foreign("compressed by gzip", _unpacking("gzip"), (".gz",), (b"\x1f\x8b",)),
    Foreign("compressed by bzip2", _unpacking("bz2"), (".bz2",), (b"BZh",)),
    Foreign("compressed by xz", _unpacking("lzma"), (".xz",), (b"\xfd7zXZ\0",)),
    Foreign("compressed by zstd", "unpack it with: zstd -d {file}", (), (b"\x28\xb5\x2f\xfd",)),
    Foreign("a 7z archive", UNPACK, (), (b"7z\xbc\xaf\x27\x1c",)),
    Foreign("a tar archive", UNPACK, (), (b"ustar",), (257,)),
    Foreign("an archive", UNPACK, (".zip", ".tar", ".tgz", ".7z")),
    Foreign("a picture (PNG)", PICTURES, (), (b"\x89PNG",)),
    Foreign("a picture (JPEG)", PICTURES, (), (b"\xff\xd8\xff",)),
    Foreign("a picture (GIF)", PICTURES, (), (b"GIF8",)),
    Foreign("a picture (TIFF)", PICTURES, (), (b"II*\0", b"MM\0*")),
    Foreign("a picture (WebP)", PICTURES, (), (b"WEBP",), (8,)),
    Foreign(
        "a picture",
        PICTURES,
        (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    ),
    Foreign("a GGUF file of weights", WEIGHTS, (), (b"GGUF",)),
    Foreign("an SQLite database", "save its numbers as .npz", (), (b"SQLite format 3\0",)),
    Foreign("a PDF document", "pass a file of arrays", (), (b"%PDF",)),
    Foreign(
        "a pointer of Git LFS, not the file itself",
        "fetch the file with: git lfs pull",
        begins=(b"version https://git-lfs",),
    ),
)
_BY_CONTENT = (".csv", ".tsv", ".txt", ".dat", ".json", ".jsonl", ".yaml", ".yml", ".xlsx", ".h5ad")
ENDINGS = dict.fromkeys(_BY_CONTENT) | {ending: kind for kind in KINDS for ending in kind.endings}
