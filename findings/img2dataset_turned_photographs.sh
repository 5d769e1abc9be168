#!/usr/bin/env bash
# Package: img2dataset 1.47.0 (with opencv-python-headless 4.14.0.94 and albumentations 1.4.24)
#
# A photograph with an EXIF orientation (every portrait shot of a phone) is stored lying on its side: the picture
# is decoded without regard to the tag and encoded anew without it, also with resize_mode "no". What is left of the
# turn is a phrase in the .json. Every viewer, and cv2.imread, shows the original upright. Only
# disable_all_reencoding keeps the tag.
#
# Who it hurts: CLIP training and grounding on web photographs: "a man standing" lies, and boxes found on the
# stored picture are wrong on the original at the same address.
# Remedy: read "exif" from the .json and turn the stored picture, or disable_all_reencoding and exif_transpose.
#
# Seen (a picture of 64 x 32 pixels whose tag says 6, to be shown 32 x 64):
#   keep_ratio: 128 x 64, tag None, shown 128 x 64; .json: {"Image Orientation": "Rotated 90 CW"}
#   no: 64 x 32, tag None, shown 64 x 32; .json: {"Image Orientation": "Rotated 90 CW"}
#   untouched: 64 x 32, tag 6, shown 32 x 64; .json: {"Image Orientation": "Rotated 90 CW"}
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile \
    img2dataset==1.47.0 opencv-python-headless==4.14.0.94 albumentations==1.4.24 pillow==13.0.0

cat > "$work/try.py" <<'PY'
import functools
import http.server
import json
import sys
import threading
from pathlib import Path

from PIL import Image, ImageOps


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def main(work):
    web = work / "web"
    web.mkdir()
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste("red", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(web / "a.jpg", exif=exif, quality=95)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (work / "urls.txt").write_text(f"http://127.0.0.1:{server.server_port}/a.jpg\n")

    from img2dataset import download

    seen = {}
    for mode in ("keep_ratio", "no", "untouched"):
        download(
            url_list=str(work / "urls.txt"),
            output_folder=str(work / mode),
            output_format="files",
            resize_mode="no" if mode == "untouched" else mode,
            disable_all_reencoding=mode == "untouched",
            image_size=64,
            processes_count=1,
            thread_count=1,
        )
        (stored,) = (work / mode).rglob("*.jpg")
        told = json.loads(stored.with_suffix(".json").read_text())["exif"]
        with Image.open(stored) as image:
            seen[mode] = image.size, image.getexif().get(0x0112), ImageOps.exif_transpose(image).size
        size, tag, shown = seen[mode]
        print(f"{mode}: {size[0]} x {size[1]}, tag {tag}, shown {shown[0]} x {shown[1]}; .json: {told}")
        assert "6" in told or "Rotated 90 CW" in told
    server.shutdown()
    with Image.open(web / "a.jpg") as image:
        upright = ImageOps.exif_transpose(image).size
    assert upright == (32, 64)
    assert seen["untouched"] == ((64, 32), 6, upright)
    assert seen["no"] == ((64, 32), None, (64, 32))
    assert seen["keep_ratio"] == ((128, 64), None, (128, 64))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
PY
NO_ALBUMENTATIONS_UPDATE=1 no_proxy=127.0.0.1 NO_PROXY=127.0.0.1 "$work/venv/bin/python" "$work/try.py" "$work" > "$work/out" 2>&1 \
    || { tail -n 20 "$work/out"; exit 1; }
grep -F .json: "$work/out"
