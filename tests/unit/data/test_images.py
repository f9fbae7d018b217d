"""Pictures: every place they may lie, and every way they may be broken."""

import io
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from mrse.data import images
from mrse.data.images import ImageProblem, ImageStore, as_image_root, decode
from mrse.errors import DataError

PIXELS = 1_000_000


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


RED = encode(Image.new("RGB", (4, 3), (255, 0, 0)))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A workspace with the same pictures in a folder and in a zip."""
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    files = {"red.png": RED, "deep/red.png": RED + b" ", "empty.png": b""}
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            (tmp_path / "pictures" / name).write_bytes(data)
            archive.writestr(name, data)
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.pipe({"/shop/red.png": RED, "/shop/deep/red.png": RED + b" ", "/shop/empty.png": b""})
    yield "memory://shop"
    system.rm("/shop", recursive=True)


@pytest.fixture(params=["folder", "file_uri", "zip_uri", "zip_path", "memory", "zip_in_memory", "bucket"])
def store(request: pytest.FixtureRequest, shop: Path, memory: str) -> ImageStore:
    fsspec.filesystem("memory").pipe("/shop/all.zip", (shop / "pictures.zip").read_bytes())
    if request.param == "bucket":
        root = f"{request.getfixturevalue('bucket')}/pictures"
        fsspec.filesystem("s3").put(str(shop / "pictures"), root, recursive=True)
        return ImageStore(root, shop)
    root = {
        "folder": "pictures",
        "file_uri": f"file://{shop}/pictures",
        "zip_uri": "zip://::pictures.zip",
        "zip_path": "pictures.zip",
        "memory": memory,
        "zip_in_memory": "zip://::memory://shop/all.zip",
    }[request.param]
    return ImageStore(root, shop)


def test_a_picture_reads_the_same_from_every_place(store: ImageStore) -> None:
    assert store.read("red.png") == RED
    assert store.read("deep/red.png") == RED + b" "
    assert store.read("./deep/../red.png") == RED


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("no.png", "missing"),
        ("", "missing"),
        ("deep", "missing"),
        ("empty.png", "empty"),
        ("../secret.png", "outside_root"),
        ("deep/../../secret.png", "outside_root"),
        ("/etc/passwd", "outside_root"),
        ("a\0b.png", "outside_root"),
        ("red.png::memory", "outside_root"),
        ("nosuch://red.png", "unreadable"),
        ("memory://no/where.png", "missing"),
        ("zip://red.png::nowhere.zip", "missing"),
    ],
)
def test_what_cannot_be_read_has_a_reason(store: ImageStore, ref: str, reason: str) -> None:
    with pytest.raises(ImageProblem) as caught:
        store.read(ref)
    assert caught.value.reason == reason


def test_a_name_that_no_file_system_takes_is_one_problem(store: ImageStore) -> None:
    with pytest.raises(ImageProblem, match=r"missing|unreadable"):
        store.read("x" * 5000)


def test_a_zip_root_may_name_a_folder_inside(shop: Path) -> None:
    assert ImageStore("zip://deep::pictures.zip", shop).read("red.png") == RED + b" "
    assert ImageStore("zip://deep/::pictures.zip", shop).read("red.png") == RED + b" "


def test_full_uris_need_no_root(shop: Path, memory: str) -> None:
    store = ImageStore(None, shop)
    assert store.read("zip://deep/red.png::pictures.zip") == RED + b" "
    assert store.read(f"file://{shop}/pictures/red.png") == RED
    assert store.read(f"{memory}/red.png") == RED
    with pytest.raises(ImageProblem) as caught:
        store.read("red.png")
    assert caught.value.reason == "no_root"


def test_names_that_start_with_dots_are_no_traversal(shop: Path) -> None:
    (shop / "pictures" / "..red.png").write_bytes(RED)
    assert ImageStore("pictures", shop).read("..red.png") == RED


@pytest.mark.parametrize("root", ["nowhere", "nowhere.zip", "secret.png", "zip://::secret.png", "nosuch://x"])
def test_a_root_that_cannot_be_used_is_a_data_error(shop: Path, root: str) -> None:
    with pytest.raises(DataError, match="image_root"):
        ImageStore(root, shop)


def test_only_a_zip_path_is_rewritten() -> None:
    assert as_image_root("a/b.ZIP") == "zip://::a/b.ZIP"
    assert as_image_root("zip://::b.zip") == "zip://::b.zip"
    assert as_image_root("s3://bucket/pictures") == "s3://bucket/pictures"


def test_a_damaged_member_is_one_problem(shop: Path) -> None:
    path = shop / "pictures.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("red.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 45 : start + 55] = bytes(10)
    path.write_bytes(bytes(data))
    store = ImageStore("pictures.zip", shop)
    with pytest.raises(ImageProblem) as caught:
        store.read("red.png")
    assert caught.value.reason == "unreadable"
    assert store.read("deep/red.png") == RED + b" "


def test_files_beyond_the_size_limit_are_refused_unread(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", len(RED))
    assert store.read("red.png") == RED
    with pytest.raises(ImageProblem) as caught:
        store.read("deep/red.png")
    assert caught.value.reason == "too_large"


def test_many_come_in_order_with_their_problems(store: ImageStore) -> None:
    refs = ["red.png", "no.png", "deep/red.png", "empty.png"] * 40
    found = list(store.read_many(iter(refs)))
    assert [place for place, _ in found] == list(range(160))
    for place, data in found:
        assert (data if isinstance(data, bytes) else data.reason) == [RED, "missing", RED + b" ", "empty"][place % 4]


def test_a_zip_may_be_read_from_many_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {f"{i}.bin": rng.bytes(20_000) for i in range(40)}
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    store = ImageStore("p.zip", tmp_path)
    wrong: list[str] = []

    def check() -> None:
        wrong.extend(name for name, data in files.items() if store.read(name) != data)

    threads = [threading.Thread(target=check) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def wide_png(size: tuple[int, int]) -> bytes:
    """A PNG whose header promises `size` pixels and whose data holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


JPEG = encode(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (RED[:48], "truncated"),
        (wide_png((8, 8)), "truncated"),
        (wide_png((2000, 2000)), "too_large"),
        (wide_png((60_000, 60_000)), "too_large"),
        (wide_png((20_000, 5_000)), "too_large"),
    ],
    ids=range(10),
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_decoded_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageProblem) as caught:
        decode(data, PIXELS)
    assert caught.value.reason == reason


def test_a_bomb_is_refused_before_its_pixels_take_memory() -> None:
    bomb = encode(Image.new("L", (12_000, 7_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ImageProblem) as caught:
        decode(bomb, PIXELS)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(("limit", "fits"), [(12, True), (11, False)])
def test_the_limit_is_inclusive(limit: int, fits: bool) -> None:
    if fits:
        assert decode(RED, limit).size == (4, 3)
        return
    with pytest.raises(ImageProblem):
        decode(RED, limit)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], duration=50)
    red, green, blue = np.asarray(decode(data, PIXELS))[1, 1]
    assert red > 240 and green < 15 and blue < 15


HALF = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
CLEAR_PALETTE = Image.new("P", (1, 1), 0)
CLEAR_PALETTE.putpalette([0, 0, 0])


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (encode(Image.new("RGB", (1, 1), (10, 20, 30))), (10, 20, 30)),
        (encode(HALF), (255, 127, 127)),
        (encode(Image.new("LA", (1, 1), (0, 0))), (255, 255, 255)),
        (encode(CLEAR_PALETTE, transparency=0), (255, 255, 255)),
        (encode(CLEAR_PALETTE), (0, 0, 0)),
        (encode(Image.new("L", (1, 1), 77)), (77, 77, 77)),
        (encode(Image.new("1", (1, 1), 1)), (255, 255, 255)),
        (encode(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(Image.fromarray(np.full((1, 1), 32_768, np.uint16))), (127, 127, 127)),
        (encode(Image.fromarray(np.full((1, 1), 32_768, np.int32)), "TIFF"), (127, 127, 127)),
        (encode(Image.fromarray(np.full((1, 1), 200, np.float32)), "TIFF"), (200, 200, 200)),
    ],
    ids=range(11),
)
def test_every_mode_becomes_rgb_on_white(data: bytes, wanted: tuple[int, int, int]) -> None:
    image = decode(data, PIXELS)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == wanted


def test_pictures_stand_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    data = encode(Image.new("RGB", (40, 20), "red"), "JPEG", exif=exif)
    assert decode(data, PIXELS).size == (20, 40)
