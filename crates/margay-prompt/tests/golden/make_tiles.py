"""Makes tiles.safetensors with transformers' SmolVLMImageProcessorPil: `python make_tiles.py` in this folder.

`src.<W>x<H>` [H, W, 3] u8 and `<W>x<H>.<longest edge>` [tiles, 3, 8, 8] u8: its tiles of 8 pixels before they are
rescaled; `.whole` where splitting is off.
"""
import numpy as np
from PIL import Image
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from make_images import save, scene


def tiles(image, longest, split):
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": 8}, do_image_splitting=split,
        do_rescale=False, do_normalize=False)
    made = processor(images=[[image]], return_tensors="np")["pixel_values"][0]
    assert (made == made.astype(np.uint8)).all()
    return made.astype(np.uint8)


def main():
    out = {}
    for w, h in [(53, 37), (37, 53), (40, 40), (97, 12), (11, 64), (2, 3), (7, 8), (120, 80), (31, 30), (17, 16)]:
        source = scene(w, h)
        name = f"{w}x{h}"
        out[f"src.{name}"] = source
        for longest in (8, 20, 24, 32):
            out[f"{name}.{longest}"] = tiles(Image.fromarray(source), longest, True)
        out[f"{name}.whole"] = tiles(Image.fromarray(source), 24, False)
    save("tiles.safetensors", out)


if __name__ == "__main__":
    main()
