"""Kinds of files that are not read: how each begins or ends, and the line that converts it."""

from __future__ import annotations

from typing import NamedTuple


class Foreign(NamedTuple):
    """What a file is, what to do about it, and the endings under which it would be read."""

    what: str
    remedy: str
    endings: tuple[str, ...] = ()


def python_line(imports: str, code: str, more: str = "") -> str:
    """Return a line of Python, in which `explained` fills in {file} and {stem}."""
    return f"convert it, {more}with: import {imports}; {code}"


TRUSTED = "if you trust it, "
TORCH = Foreign(
    "a PyTorch checkpoint",
    python_line(
        "torch, safetensors.torch as s",
        's.save_file({k: v.contiguous() for k, v in torch.load("{file}", map_location="cpu").items()}, '
        '"{stem}.safetensors")',
    )
    + '  # a tensor x alone: {"features": x}',
)
PICKLE = Foreign(
    "a pickle",
    python_line(
        "numpy as np, pathlib, pickle",
        'np.savez("{stem}.npz", **pickle.loads(pathlib.Path("{file}").read_bytes()))  # of a dict of arrays',
        TRUSTED,
    ),
)
JOBLIB = Foreign(
    "a pickle of joblib",
    python_line(
        "numpy as np, joblib",
        'np.savez("{stem}.npz", **joblib.load("{file}"))  # of a dict of arrays',
        TRUSTED,
    ),
)
PARQUET = Foreign(
    "a Parquet table",
    python_line(
        "numpy as np, pandas as pd",
        'np.save("{stem}.npy", pd.read_parquet("{file}").to_numpy("float32"))',
    ),
)
FEATHER = Foreign(
    "an Arrow table (Feather)",
    python_line(
        "numpy as np, pandas as pd",
        'np.save("{stem}.npy", pd.read_feather("{file}").to_numpy("float32"))',
    ),
)
ARROW = Foreign(
    "an Arrow stream, as datasets are cached in",
    python_line(
        "datasets, numpy as np",
        'np.save("{stem}.npy", datasets.Dataset.from_file("{file}").with_format("numpy")["features"])',
    ),
)
MATLAB = Foreign(
    "a MATLAB file of version 5",
    python_line(
        "numpy as np, scipy.io",
        'np.savez("{stem}.npz", **{k: v for k, v in scipy.io.loadmat("{file}").items() if k[0] != "_"})',
    ),
)
MATLAB_73 = Foreign(
    "a MATLAB file of version 7.3, whose arrays are transposed in HDF5",
    python_line(
        "h5py, numpy as np",
        'f = h5py.File("{file}"); np.savez("{stem}.npz", **{k: f[k][()].T for k in f if k[0] != "#"})',
    ),
)
TFRECORD = Foreign(
    "a TFRecord file",
    python_line(
        "numpy as np, tensorflow as tf",
        'np.save("{stem}.npy", [tf.io.parse_single_example(r, {"features": tf.io.FixedLenFeature([d], '
        'tf.float32)})["features"] for r in tf.data.TFRecordDataset("{file}")])',
    ),
)
PICTURES = "the audit reads activations: run the network on the pictures, and write its layers with collapsemeter.activations.Writer"
UNPACK = "unpack it, and pass what is in it"
WEIGHTS_ELSEWHERE = "run the model, and write its layers with collapsemeter.activations.Writer"


def _packed(what: str, module: str) -> Foreign:
    code = 'pathlib.Path("{stem}").write_bytes(%s.decompress(pathlib.Path("{file}").read_bytes()))'
    return Foreign(f"compressed by {what}", python_line(f"{module}, pathlib", code % module))


SIGNATURES: tuple[tuple[int, bytes, Foreign], ...] = (
    (0, b"\x93NUMPY", Foreign("a .npy array", "name it {stem}.npy", (".npy",))),
    (0, b"MATLAB 5.0", MATLAB),
    (0, b"MATLAB 7.3", MATLAB_73),
    *(
        (
            at,
            b"\x89HDF\r\n\x1a\n",
            Foreign("an HDF5 file", "name it {stem}.h5", (".h5", ".hdf5")),
        )
        for at in (0, 512, 1024, 2048, 4096)
    ),
    (0, b"PAR1", PARQUET),
    (0, b"ARROW1", FEATHER),
    (0, b"FEA1", FEATHER),
    (0, b"\xff\xff\xff\xff", ARROW),
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", TORCH),  # before zip archives
    (0, b"\x1f\x8b", _packed("gzip", "gzip")),
    (0, b"BZh", _packed("bzip2", "bz2")),
    (0, b"\xfd7zXZ\0", _packed("xz", "lzma")),
    (0, b"\x28\xb5\x2f\xfd", Foreign("compressed by zstd", "unpack it with: zstd -d {file}")),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", UNPACK)),
    (257, b"ustar", Foreign("a tar archive", UNPACK)),
    (0, b"\x89PNG", Foreign("a picture (PNG)", PICTURES)),
    (0, b"\xff\xd8\xff", Foreign("a picture (JPEG)", PICTURES)),
    (0, b"GIF8", Foreign("a picture (GIF)", PICTURES)),
    (0, b"II*\0", Foreign("a picture (TIFF)", PICTURES)),
    (0, b"MM\0*", Foreign("a picture (TIFF)", PICTURES)),
    (8, b"WEBP", Foreign("a picture (WebP)", PICTURES)),
    (0, b"GGUF", Foreign("a GGUF file of weights", WEIGHTS_ELSEWHERE)),
    (0, b"SQLite format 3\0", Foreign("an SQLite database", "save its numbers as .npz")),
    (0, b"%PDF", Foreign("a PDF document", "pass a file of arrays")),
    (
        0,
        b"version https://git-lfs",
        Foreign("a pointer of Git LFS, not the file itself", "fetch the file with: git lfs pull"),
    ),
)
ENDINGS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), TORCH),
    **dict.fromkeys((".pkl", ".pickle"), PICKLE),
    ".joblib": JOBLIB,
    **dict.fromkeys((".parquet", ".pq"), PARQUET),
    ".feather": FEATHER,
    ".arrow": ARROW,
    ".mat": MATLAB,
    **dict.fromkeys((".tfrecord", ".tfrecords"), TFRECORD),
    ".onnx": Foreign("an ONNX model", WEIGHTS_ELSEWHERE),
    ".keras": Foreign("a Keras model", WEIGHTS_ELSEWHERE),
    ".gz": _packed("gzip", "gzip"),
    ".bz2": _packed("bzip2", "bz2"),
    ".xz": _packed("xz", "lzma"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z"), Foreign("an archive", UNPACK)),
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
        Foreign("a picture", PICTURES),
    ),
    **dict.fromkeys(
        (".csv", ".tsv", ".txt", ".dat"), None
    ),  # the content tells how it is separated
    **dict.fromkeys((".json", ".jsonl", ".yaml", ".yml", ".xlsx", ".h5ad"), None),
}
