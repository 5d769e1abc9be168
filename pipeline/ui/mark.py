"""POST /marks: mark an image or a box as bad, or take a mark back; only from a page of this server.

Fields of the form: `key` with `part` ("x0 y0 x1 y1 phrase") or `sample`, or `undo` with the name of a mark; `version`,
and `back`, the page to return to. Any page on the web can make a browser send a form, so a request counts only when the
browser says that it comes from this server (Sec-Fetch-Site, or Origin equal to Host).
"""

import math
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hyco.storage.marks import Marks

LONGEST = 16_384  # bytes of a form
READ_ONLY = (
    "These pages are read-only: hyco serve --marks lets whoever can reach them mark images and boxes as bad."
)


async def answer(request: Request, marks: Marks, writable: bool) -> Response:
    """Change a mark and lead back to the page; an HTTPException where the request is refused."""
    if not same_origin(request):
        raise HTTPException(403, "marks are taken from the pages of this server only")
    if not writable:
        raise HTTPException(403, READ_ONLY)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST:
            raise HTTPException(413, f"a form of more than {LONGEST} bytes")
    try:
        form = {name: values[0] for name, values in parse_qs(body.decode(), max_num_fields=16).items()}
        await run_in_threadpool(apply, marks, form)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    except OSError as error:
        raise HTTPException(403, f"the home cannot be written to: {error}") from None
    back = form.get("back", "")
    inside = back.startswith(("/versions/", "/detections/", "/marks")) and "\\" not in back
    return RedirectResponse(back if inside else "/marks", status_code=303)


def same_origin(request: Request) -> bool:
    """Whether the browser says that the request comes from a page of this server."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin", "")
    return bool(origin) and urlsplit(origin).netloc == request.headers.get("host")


def apply(marks: Marks, form: dict[str, str]) -> None:
    """Do what a form asks for; ValueError for one that asks for nothing or that is not one of these pages'."""
    if name := form.get("undo"):
        marks.undo(name)
        return
    key, version = form.get("key", ""), form.get("version", "")[:64]
    if form.get("sample"):
        marks.put(key, version=version)
        return
    words = form.get("part", "").split(" ", 4)
    if len(words) != 5 or not words[4].strip():
        raise ValueError(
            "the form names neither an image, nor a box with its phrase, nor a mark to take back"
        )
    box = [float(word) for word in words[:4]]
    if not all(map(math.isfinite, box)):
        raise ValueError(f"box {words[:4]} has no place in the image")
    marks.put(key, words[4], box, version)
