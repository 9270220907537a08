"""What the journal keeps of a request for a mask, so that the request can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib.datastore.journal import Interaction
from lib.imaging.mask import BoxMask
from lib.infers.initial_mask import file_digest
from lib.infers.request import CLICK_LISTS, PROMPTS, START

PROMPT_KEYS = ("type", "subtype", "prompt", "semantic_id_key")
"""PROMPT_KEYS: what is kept of each prompt of a list."""

OPTIONS = (
    *(key for key in (*PROMPTS, *START) if key not in ("prompts", *CLICK_LISTS)),
    "label_info",
    "page",
)
"""OPTIONS: keys of a request that change the mask, beside the prompts.

``label_info`` and ``page`` do not: the one tells which number the structure has in a mask to start
from, the other which page of the viewer asked.
"""


def describe_interaction(
    image: str,
    request: Mapping[str, Any],
    result: Mapping[str, Any],
    mask: BoxMask,
    initial_mask: str | None,
    user: str,
) -> Interaction:
    """Return the entry of a request that was answered.

    image: ID of the image. request: as the client sent it, with the ``model``. result: of the infer
    task. initial_mask: path of the mask that the request starts from, if any. user: "" if unknown.
    """
    prompts = request.get("prompts")
    if prompts is not None:
        # `aux` and unknown keys do not change the mask, and may be large
        prompts = [{key: prompt[key] for key in PROMPT_KEYS} for prompt in prompts]
    else:
        prompts = {key: request[key] for key in CLICK_LISTS if request.get(key) is not None}
    label = request.get("label")
    return Interaction(
        image=image,
        label=label if isinstance(label, str) else "",
        prompts=prompts,
        options={key: request[key] for key in (*OPTIONS, "model") if request.get(key) is not None},
        weights_sha256=str(result.get("weights", {}).get("sha256") or ""),
        mask_sha256=mask.sha256(),
        user=user,
        initial_mask_sha256=file_digest(initial_mask) if initial_mask else "",
    )
