"""What one request may ask for.  Everything here is checked before the work it bounds is done."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from infra.config import StrictModel
from training.bounds import MAX_LABEL_CHARACTERS, MAX_SET_SIZE, MAX_TEMPLATES


class ServingLimits(StrictModel):
    """Bounds of one request and of one ingress replica."""

    max_body_bytes: PositiveInt = 32 * 2**20
    """Of a whole request; a longer one is refused while it arrives."""
    max_json_bytes: PositiveInt = 8 * 2**20
    """Of a JSON body, which takes several times its size while it is read."""
    max_body_bytes_in_flight: PositiveInt = 256 * 2**20
    """Of all bodies that one ingress replica holds at once; what does not fit is refused with 429."""
    body_timeout_s: PositiveFloat = 60
    """Until a whole request must have arrived: who sends a byte now and then would hold a place for ever."""
    max_pixels: PositiveInt = 40_000_000
    """Of one picture, by its header, before anything is decoded."""
    max_images: PositiveInt = 32
    """Pictures in one call."""
    max_stream_images: PositiveInt = 10_000
    """Pictures in one streamed call."""
    max_stream_bytes: PositiveInt = 256 * 2**20
    """Of a whole streamed call; one picture of it may have `max_body_bytes`."""
    max_stream_in_work: PositiveInt = 32
    """Pictures of one streamed call that are worked on at a time."""
    stream_timeout_s: PositiveFloat = 600
    """Until a whole streamed call must have arrived."""
    max_streams: PositiveInt = 4
    """Streamed calls that one ingress replica works on; more are refused with 429."""
    max_labels: Annotated[int, Field(ge=1, le=MAX_SET_SIZE)] = MAX_SET_SIZE
    """Labels of one task."""
    max_label_characters: Annotated[int, Field(ge=1, le=MAX_LABEL_CHARACTERS)] = MAX_LABEL_CHARACTERS
    """Of one label or template."""
    max_templates: Annotated[int, Field(ge=1, le=MAX_TEMPLATES)] = MAX_TEMPLATES
    """Templates of one task."""
    max_tasks_per_tenant: PositiveInt = 10_000
    """Tasks that a tenant may have at a time."""
    max_labels_per_tenant: PositiveInt = 1_000_000
    """Labels of all these together."""
    max_texts: PositiveInt = 256
    """Texts in one call for text features."""
    max_total_tokens: PositiveInt = 1_000_000
    """Tokens that one call may put through the text encoder: labels times templates, start and end of text included."""
    max_top_k: PositiveInt = 1000
    """Labels in one answer."""
    max_requests_in_flight: PositiveInt = 128
    """Requests that one ingress replica works on; more are refused with 429."""
    retry_after_s: PositiveInt = 1
    """What a refused client is told to wait."""
    request_timeout_s: PositiveFloat = 30
    """Until a call to the image encoder or the text encoder counts as failed."""
    specialize_timeout_s: PositiveFloat = 300
    """The same for making a specialized encoder or its package."""
