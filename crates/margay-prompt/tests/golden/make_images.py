"""Makes the picture goldens of margay-prompt with Pillow and numpy: `python make_images.py` in this folder.

resize.safetensors      sources `src.<name>` [H, W, 3] u8 and `<name>.<filter>.<W>x<H>` = Pillow's Image.resize
preprocess.safetensors  `<source>.<recipe>` [3, H, W] f32: LLaVA's pad, transformers' shortest edge + centre crop, squash
clip_processor.safetensors (not made here: transformers 4.57.3, CLIPImageProcessor on one picture at 28 px)
pictures/, decode.safetensors
                        small files of every readable flavour and what Pillow makes of them:
                        `<file>` = ImageOps.exif_transpose(im).convert("RGB"), `<file>.white` = composited on white
"""
import io
import json
import math
import struct
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps

Image.MAX_IMAGE_PIXELS = None
rng = np.random.default_rng(20240229)
DTYPES = {np.dtype("uint8"): "U8", np.dtype("float32"): "F32"}


def save(path, tensors):
    header, offset, blobs = {"__metadata__": {"made_with": f"Pillow {PIL.__version__}"}}, 0, []
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        blobs.append(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + b"".join(blobs))


def scene(w, h, noise=24):
    """Edges, slopes, saturated areas and noise."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    a = np.stack([255 * x / max(w - 1, 1), 255 * y / max(h - 1, 1), 127 + 127 * np.sin(x * 0.7 + y * 0.3)], -1)
    a[(x // 5 + y // 4) % 3 == 0] = [255, 0, 255]
    a[(x + 2 * y) % 11 == 0] = [0, 255, 0]
    return np.clip(a + rng.normal(0, noise, a.shape), 0, 255).astype(np.uint8)


FILTERS = {"nearest": Image.NEAREST, "box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC,
           "lanczos": Image.LANCZOS}


def make_resize():
    out = {}
    plans = {
        (53, 37): [(24, 24), (53, 20), (80, 61), (106, 74), (1, 1), (53, 37), (1, 37), (52, 38), (27, 19)],
        (1, 1): [(3, 5)],
        (1, 17): [(4, 4), (1, 40)],
        (17, 1): [(4, 4), (40, 1)],
        (2, 2): [(7, 3), (1, 2)],
        (300, 3): [(12, 12), (3, 30)],
        (3, 300): [(12, 12), (30, 3)],
        (129, 97): [(14, 14), (128, 96), (130, 98), (43, 33)],
    }
    for (w, h), sizes in plans.items():
        name = f"{w}x{h}"
        source = scene(w, h) if (w, h) != (1, 1) else np.array([[[7, 200, 255]]], np.uint8)
        out[f"src.{name}"] = source
        for size in sizes:
            for filt, code in FILTERS.items():
                out[f"{name}.{filt}.{size[0]}x{size[1]}"] = np.asarray(Image.fromarray(source).resize(size, code))
    save("resize.safetensors", out)


CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
HALF = np.full(3, 0.5, np.float32)


def normalise(im, mean, std):
    scaled = (np.asarray(im).astype(np.float64) * (1 / 255)).astype(np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def llava_pad(im, side):
    """LLaVA mm_utils.expand2square, then the processor's resize."""
    w, h = im.size
    fill = tuple(int(x * 255) for x in (0.48145466, 0.4578275, 0.40821073))
    s = max(w, h)
    square = Image.new("RGB", (s, s), fill)
    square.paste(im, ((s - w) // 2, (s - h) // 2))
    return square.resize((side, side), Image.BICUBIC)


def shortest_edge_crop(im, edge, crop):
    """transformers image_transforms: get_resize_output_image_size and center_crop, crop smaller or larger."""
    w, h = im.size
    short, long = min(w, h), max(w, h)
    new_long = int(edge * long / short)
    a = np.asarray(im.resize((edge, new_long) if w <= h else (new_long, edge), Image.BICUBIC))
    oh, ow = a.shape[:2]
    top, left = (oh - crop) // 2, (ow - crop) // 2
    if top >= 0 and left >= 0 and top + crop <= oh and left + crop <= ow:
        return a[top:top + crop, left:left + crop]
    nh, nw = max(crop, oh), max(crop, ow)
    canvas = np.zeros((nh, nw, 3), np.uint8)
    tp, lp = math.ceil((nh - oh) / 2), math.ceil((nw - ow) / 2)
    canvas[tp:tp + oh, lp:lp + ow] = a
    top, left = top + tp, left + lp
    return canvas[max(0, top):min(nh, top + crop), max(0, left):min(nw, left + crop)]


def make_preprocess():
    out = {}
    for w, h in [(53, 37), (37, 53), (40, 40), (97, 12), (11, 64), (1, 1), (28, 27), (300, 200)]:
        source = scene(w, h)
        im = Image.fromarray(source)
        name = f"{w}x{h}"
        out[f"src.{name}"] = source
        out[f"{name}.pad28"] = normalise(llava_pad(im, 28), CLIP_MEAN, CLIP_STD)
        out[f"{name}.crop28"] = normalise(shortest_edge_crop(im, 28, 28), CLIP_MEAN, CLIP_STD)
        out[f"{name}.edge20crop27"] = normalise(shortest_edge_crop(im, 20, 27), CLIP_MEAN, CLIP_STD)
        out[f"{name}.squash27"] = normalise(im.resize((27, 27), Image.BICUBIC), HALF, HALF)
    save("preprocess.safetensors", out)


def raw_png(w, h, depth, colour, rows, extra=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)) + extra
            + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows))) + chunk(b"IEND", b""))


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e.tobytes()


def make_decode():
    files = {}
    a = scene(19, 13)
    smooth = scene(19, 13, noise=0)
    smooth = np.asarray(Image.fromarray(smooth).resize((40, 28), Image.BICUBIC))
    im, soft = Image.fromarray(a), Image.fromarray(smooth)
    alpha = Image.fromarray((np.mgrid[0:13, 0:19].sum(0) * 8 % 256).astype(np.uint8))
    rgba = im.copy()
    rgba.putalpha(alpha)

    def put(name, image, fmt, **kw):
        f = io.BytesIO()
        image.save(f, fmt, **kw)
        files[name] = f.getvalue()

    put("rgb.png", im, "PNG")
    put("rgba.png", rgba, "PNG")
    put("grey.png", im.convert("L"), "PNG")
    put("grey_alpha.png", rgba.convert("LA"), "PNG")
    put("bilevel.png", im.convert("1"), "PNG")
    put("palette.png", im.quantize(20), "PNG")
    put("palette_transparent.png", im.quantize(20), "PNG", transparency=3)
    put("exif6.png", im, "PNG", exif=exif(6))
    wide = (a.astype(np.uint16) * 257 ^ 0x00A5).astype(">u2")
    files["rgb16.png"] = raw_png(19, 13, 16, 2, [r.tobytes() for r in wide])
    wide_alpha = np.concatenate([wide, (np.asarray(alpha).astype(np.uint16) * 257).astype(">u2")[..., None]], -1)
    files["rgba16.png"] = raw_png(19, 13, 16, 6, [r.tobytes() for r in wide_alpha])
    files["grey16.png"] = raw_png(19, 13, 16, 0, [r.tobytes() for r in wide[..., 0]])
    put("rgb.jpg", soft, "JPEG", quality=92, subsampling=0)
    put("subsampled.jpg", soft, "JPEG", quality=90, subsampling=2)
    put("progressive.jpg", soft, "JPEG", quality=90, progressive=True, subsampling=0)
    put("grey.jpg", soft.convert("L"), "JPEG", quality=92)
    put("cmyk.jpg", soft.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    for o in range(1, 9):
        put(f"exif{o}.jpg", soft, "JPEG", quality=92, subsampling=0, exif=exif(o))
    put("lossless.webp", im, "WEBP", lossless=True)
    put("lossless_alpha.webp", rgba, "WEBP", lossless=True, exact=True)
    put("lossy.webp", soft, "WEBP", quality=90)
    put("exif8.webp", im, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(8).removeprefix(b"Exif\0\0"))
    put("first_of_two.gif", im.quantize(20), "GIF", save_all=True, append_images=[im.rotate(180).quantize(20)])
    put("transparent.gif", im.quantize(20), "GIF", transparency=2)
    put("interlaced.gif", im.quantize(64), "GIF", interlace=1)
    put("rgb.bmp", im, "BMP")
    put("palette.bmp", im.quantize(20), "BMP")
    put("grey.bmp", im.convert("L"), "BMP")
    put("rgba.bmp", rgba, "BMP")

    out = {}
    for name, data in files.items():
        with open(f"pictures/{name}", "wb") as f:
            f.write(data)
        opened = Image.open(io.BytesIO(data))
        upright = ImageOps.exif_transpose(opened)
        out[name] = np.asarray(upright.convert("RGB"))
        if name == "grey16.png":  # Pillow clips 16-bit grey at 255; the high byte is what a viewer shows
            out[name] = np.repeat((wide[..., :1] >> 8).astype(np.uint8), 3, -1)
        if "A" in upright.mode or "transparency" in upright.info:
            white = Image.new("RGBA", upright.size, (255, 255, 255))
            out[f"{name}.white"] = np.asarray(Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"))
    save("decode.safetensors", out)


if __name__ == "__main__":
    make_resize()
    make_preprocess()
    make_decode()
    with open("bomb_30000x30000.png", "wb") as f:  # a whole header and a little valid data; 900 Mpx if believed
        f.write(raw_png(30000, 30000, 8, 2, [bytes(90000)] * 40))
