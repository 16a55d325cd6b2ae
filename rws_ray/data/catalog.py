"""The named sets: what each must hold, row for row, and where the public gets it.

`content` is the digest of a split's rows in sorted order (format.content_digest), so a source that keeps the same rows
in another order is still the same set. All were computed from the literature's data (docs/data.md says how).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rws_ray.data.format import Kind, Split, content_digest


@dataclass(frozen=True)
class Part:
    """One split of a named set: its number of rows and the digest of its rows in sorted order."""

    num_rows: int
    content: str


@dataclass(frozen=True)
class NamedSet:
    """A set of the catalog.

    `homes` are (split, address) pairs of the files that the public gets it from; none for the embedded set. Where no
    file is named for valid, it is the last rows of the train file. `license` tells the terms of use.
    """

    name: str
    dim: int
    shape: tuple[int, ...]
    kind: Kind
    parts: Mapping[str, Part]
    homes: tuple[tuple[str, str], ...] = ()
    license: str = ""


def _named(
    name: str,
    dim: int,
    *parts: tuple[int, str],
    shape: tuple[int, ...] = (),
    kind: Kind = "binary",
    homes: tuple[tuple[str, str], ...] = (),
    license: str,
) -> NamedSet:
    train, valid, test = (Part(num_rows, content) for num_rows, content in parts)
    return NamedSet(name, dim, shape, kind, {"train": train, "valid": valid, "test": test}, homes, license)


def _one_file_a_split(pattern: str) -> tuple[tuple[str, str], ...]:
    return tuple((split, pattern.format(split)) for split in ("train", "valid", "test"))


_LAROCHELLE = "https://www.cs.toronto.edu/~larocheh/public/datasets/"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/"
_DEBD = "https://raw.githubusercontent.com/UCLA-StarAI/Density-Estimation-Datasets/master/datasets/"

_UCI = "CC BY 4.0 (UCI Machine Learning Repository); this binary form: cite Larochelle & Murray 2011"
_MNIST_TERMS = "MNIST is usually given as CC BY-SA 3.0"

CATALOG: Mapping[str, NamedSet] = {
    named.name: named
    for named in (
        _named(
            "digits",
            64,
            (1197, "0a60a0016b11777dc6f9e503e78de9ad32a15c00eed0d050840eb28493248533"),
            (200, "8d6c63011721ee82a6ba9219a4793e0cf9980e997f12cccaaea78743f8aee1ba"),
            (400, "a30044d4b86014fcaa43c32422b1fa4ea9450558ab4f2f5284241f6cefed2658"),
            shape=(8, 8),
            license="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
        ),
        _named(
            "binarized_mnist",
            784,
            (50000, "2b012931cd913fd0706a0bdee7855d3b4201708183b5757769e6ebbee8001180"),
            (10000, "9241c8a3bddf72f97dbd3e82dfd0cc0501d3bc43c986e9dfe6f3862b5046fbd4"),
            (10000, "6c126d0d05ec3a5622934ea5d942ae0da93d61cc9b28ce8ffe7269341c75f831"),
            shape=(28, 28),
            homes=_one_file_a_split(_LAROCHELLE + "binarized_mnist/binarized_mnist_{}.amat"),
            license=f"not stated for this binary form; {_MNIST_TERMS}",
        ),
        _named(
            "mnist_gray",
            784,
            (50000, "0b2320f4851bb95f24424b109f9b92c7fd563a04ec35d658b95bf08f7e84d64c"),
            (10000, "aaabee041d65a13be997a7ae3c7c63bb8499b127322c269848a4bb5a60b5a8dc"),
            (10000, "426afedf4383f0cdb3da8ea95bbbc5ee9a584969f2ac07e9cc4218d0c8d50e80"),
            shape=(28, 28),
            kind="gray8",
            homes=(
                ("train", _MNIST + "train-images-idx3-ubyte.gz"),
                ("train", _MNIST + "train-labels-idx1-ubyte.gz"),
                ("test", _MNIST + "t10k-images-idx3-ubyte.gz"),
                ("test", _MNIST + "t10k-labels-idx1-ubyte.gz"),
            ),
            license=_MNIST_TERMS,
        ),
        _named(
            "ocr_letters",
            128,
            (32152, "89c158a5c2750cec5423eb609fe60c820758c97d2190c5561d9c5241840fa24d"),
            (10000, "72619404c4dea89f04e79d75777c916f66280177360d5766925802bd939fa438"),
            (10000, "4831f76d339ab502adee7fac296b5d8fd9d62137308aad6eb2f14abfb2284a11"),
            shape=(16, 8),
            homes=_one_file_a_split(_DEBD + "ocr_letters/ocr_letters.{}.data"),
            license="not stated (B. Taskar's OCR set); this form: cite Larochelle & Murray 2011",
        ),
        _named(
            "adult",
            123,
            (5000, "fe58ab5fb05a407b87ce0dbbd3efcd90e37420c0d21e2e24acb14d279ab535a2"),
            (1414, "0f8dd918e0a47e492ef1c2dc0ecf90e8556506fa70bf1edf27d6d249c884f2d4"),
            (26147, "d9656482f7098c045c33f3e3fc089bc3ae79c0de597408d45ab4beb5eb211370"),
            homes=_one_file_a_split(_DEBD + "adult/adult.{}.data"),
            license=_UCI,
        ),
        _named(
            "dna",
            180,
            (1400, "be16a9dfa643459c3406338ae3c4daba15fbf7350d99180e66f5e1843ed2237a"),
            (600, "2d42ef6c8fd567eeee749ceee4002e07fd94092d198696c52b5997465411d9ad"),
            (1186, "66253f0b3dd288a10daf720324c96698bd20f5ce5d4ed987c7a2a4e1e425ccb8"),
            homes=(("train", _LIBSVM + "multiclass/dna.scale"), ("test", _LIBSVM + "multiclass/dna.scale.t")),
            license="CC BY 4.0 (UCI, Splice-junction Gene Sequences); not stated for LIBSVM's form of it",
        ),
        _named(
            "connect4",
            126,
            (16000, "70d3465e7b81bb4526dc65890392256b469e544d71e59c0c6703a6ac5654c7d3"),
            (4000, "5aa936f5de0c7a91f70f39efea64f5a48fa01f1ce54bf9983f1c5695cde435be"),
            (47557, "025d73c0250075d5afd81b5a99b74cf2239e2807b0d14d84af617fbd061a13ac"),
            homes=_one_file_a_split(_DEBD + "connect4/connect4.{}.data"),
            license=_UCI,
        ),
    )
}


def known_content(split: Split) -> str | None:
    """The catalog's split with the same rows, as "adult/valid", whatever the split calls itself; None if none has."""
    content = content_digest(split)
    for named in CATALOG.values():
        for part_of, part in named.parts.items():
            if part.content == content and named.dim == split.dim:
                return f"{named.name}/{part_of}"
    return None
