"""``/v1/files``: uploads, and what the model gets of them."""

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vljax.serve.limits import Refusal, require_type, wrong
from vljax.serve.media import Files
from vljax.serve.pictures import picture


def routes(files: Files) -> list[Route]:
    async def upload(request: Request) -> Response:
        """OpenAI's file upload; the file is decoded at once, and only what came of it is kept."""
        require_type(request.headers, "multipart/form-data")
        kept = await files.add(*await _form_file(request))
        return JSONResponse(kept.as_file())

    async def described(request: Request) -> Response:
        return JSONResponse(files.get(request.path_params["id"]).as_file())

    async def forget(request: Request) -> Response:
        id = request.path_params["id"]
        files.remove(id)
        return JSONResponse({"id": id, "object": "file", "deleted": True})

    async def shown(request: Request) -> Response:
        """A frame, or a part of the sound, as the model gets it."""
        kept = files.get(request.path_params["id"])
        what, index = request.path_params["what"], request.path_params["index"]
        png = await run_in_threadpool(picture, kept.upload, what, index)
        if png is None:
            raise Refusal(404, f"{kept.name} has no {what[:20]} {index}", "not_found")
        return Response(png, media_type="image/png", headers={"Cache-Control": "private"})

    return [
        Route("/v1/files", upload, methods=["POST"]),
        Route("/v1/files/{id}", described, methods=["GET"]),
        Route("/v1/files/{id}", forget, methods=["DELETE"]),
        Route("/v1/files/{id}/{what}/{index:int}.png", shown),
    ]


async def _form_file(request: Request) -> tuple[str, bytes]:
    """Name and bytes of the form's file."""
    try:
        async with request.form(max_files=1, max_fields=8, max_part_size=10_000) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise wrong("file: expected a file in the form's field of this name", "file")
            return file.filename or "", await file.read()
    except HTTPException as error:
        raise wrong(f"the form cannot be read: {error.detail}") from error
