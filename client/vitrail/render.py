"""Draws one map over its image, for people: title, image, colours and a colour bar with values.

`overlay` gets plain values and the plan, and returns a Pillow image at least 512 pixels wide. Maps
without negative values get a sequential scale from 0; maps with negative values get a diverging one,
centred on 0. What has no value stays transparent. Importing this file needs Pillow.
"""

import contextlib
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.enums import name_of
from vitrail.tensors import from_tensor
from vitrail.v1 import explanation_pb2 as pb

try:
    from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
except ImportError as error:
    raise ImportError('drawing a map needs Pillow; install it with: pip install "vitrail[cli]"') from error

Floats = NDArray[np.float32]

MIN_WIDTH = 512
"""The least width of an overlay, in pixels."""

PANEL = (704, 1408)
"""The least and the most pixels of the longer side of the image within an overlay."""

MARGIN = 24
PAPER, INK, FAINT = (255, 255, 255), (24, 26, 32), (105, 110, 122)

CLIP_PERCENTILE = 99.0
"""Gradients have a few huge values; those beyond this percentile of the absolute values share the
last colour, and the colour bar says so."""

SEQUENTIAL = ((32, 12, 74), (118, 27, 109), (206, 56, 76), (248, 138, 36), (253, 240, 166))
"""From 0 to the highest value."""

NEGATIVE = ((120, 190, 250), (44, 120, 214), (16, 44, 140))
POSITIVE = ((255, 170, 120), (238, 84, 46), (158, 8, 30))
"""From 0 to the highest absolute value, for maps with both signs; 0 itself is transparent."""

OPACITY = 0.88
"""How much of the image the strongest colour hides."""

FADE = 0.7
"""The power of a value at which the image fades under it: below 1, middling values stay visible."""

GROUND, SATURATION = (20, 215), 0.15
"""The levels that black and white become beneath the colours, and how much of its own colour stays."""

BAR_HEIGHT = 16

LOSSES = (pb.Objective.KIND_SQUARED_ERROR, pb.Objective.KIND_CROSS_ENTROPY)
"""The objectives that are better when they are lower."""

FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc")
"""Looked for where a text has letters that Pillow's own font lacks."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How the values of a map become colours."""

    limit: float
    """The value (absolute value, if diverging) that gets the last colour; 1 for a map without any."""
    diverging: bool
    clipped: bool
    """Whether there are values beyond the limit."""

    def positions(self, values: Floats) -> Floats:
        """Return where values (any shape) are on the scale: 0 to 1, or -1 to 1 if diverging."""
        low = -1.0 if self.diverging else 0.0
        with np.errstate(over="ignore"):  # what overflows is beyond the limit
            return np.asarray(np.clip(values / np.float32(self.limit), low, 1.0))

    def colours(self, positions: Floats) -> Floats:
        """Return (..., 4): red, green and blue from 0 to 255, and the opacity from 0 to 1."""
        sizes = np.abs(positions)
        rgb = _between(POSITIVE if self.diverging else SEQUENTIAL, sizes)
        if self.diverging:
            rgb = np.where((positions < 0)[..., None], _between(NEGATIVE, sizes), rgb)
        opacity = OPACITY * sizes[..., None] ** FADE
        return np.concatenate([rgb, opacity], -1)


def overlay(
    values: Floats, plan: pb.Plan, image: pb.Image, *, name: str, score: float, progress: float
) -> Image.Image:
    """Draw one target's map over its image.

    `values` is (height, width), or (height, width, channels), of which each pixel's strongest is
    drawn; NaN where there is no value. `image` is the one that was sent; the part of it that
    `plan.source_box` names is shown. `name` and `score` are the target's, `progress` is the part of
    the map that was computed.
    """
    gradient = plan.WhichOneof("method") == "gradient"
    flat = strongest(values)
    scale = scale_of(flat, CLIP_PERCENTILE if gradient else 100.0)
    photo = _panel(_cropped(photograph(image), plan.source_box))
    lit = _lit(photo, scale, flat, smooth=gradient)
    return _page(
        lit,
        scale,
        title=name,
        figure=f"{_score_name(plan)} {_number(score)}",
        subtitle=_subtitle(plan, progress),
        caption=_caption(plan),
    )


def png(image: Image.Image) -> bytes:
    """Return `image` as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def photograph(image: pb.Image) -> Image.Image:
    """Return the image that was sent, upright, as RGB.

    A tensor is shown as it is if it holds bytes, from 0 to 1 if its values lie there, and otherwise
    from its lowest value to its highest.
    """
    if image.WhichOneof("source") == "encoded":
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(image.encoded)))
        if picture.mode.startswith("I"):  # 16 bits per pixel, which Pillow would cut off at 255
            picture = picture.convert("F").point(lambda level: level * (255 / 65535))
        return picture.convert("RGB")
    array = from_tensor(image.tensor, "spec.image.tensor")
    array = array[0] if array.ndim == 4 else array
    pixels = array.astype(np.float64)
    if array.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        pixels = (pixels - low) * (255.0 / (high - low or 1.0))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    # One or two channels are shown as gray; of more than three, the first three.
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, 2)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def strongest(values: Floats) -> Floats:
    """Return (height, width): the value itself, or of several channels the one farthest from 0."""
    if values.ndim == 2:
        return values
    chosen = np.abs(np.nan_to_num(values)).argmax(-1)
    return np.take_along_axis(values, chosen[..., None], -1)[..., 0]


def scale_of(values: Floats, percentile: float) -> Scale:
    """Return the scale for a map, which ends at this percentile of the finite absolute values."""
    sizes = np.abs(values[~np.isnan(values)])
    finite = sizes[np.isfinite(sizes)]
    limit = float(np.float32(np.percentile(finite, percentile))) if finite.size else 0.0
    # A map of a few isolated values has a percentile of 0: it is not clipped.
    limit = limit or float(finite.max(initial=0.0)) or 1.0
    return Scale(limit, diverging=bool((values < 0).any()), clipped=bool((sizes > limit).any()))


def _between(stops: tuple[tuple[int, int, int], ...], places: Floats) -> Floats:
    """Return (..., 3): the colours at `places` from 0 to 1, between evenly spaced stops."""
    at = np.linspace(0.0, 1.0, len(stops))
    colours = [np.interp(places, at, channel) for channel in np.array(stops, np.float32).T]
    return np.stack(colours, -1).astype(np.float32)


def _panel(photo: Image.Image) -> Image.Image:
    """Return the photo in the size in which it is shown."""
    longer = max(photo.size)
    factor = min(max(longer, PANEL[0]), PANEL[1]) / longer
    size = tuple(max(1, round(side * factor)) for side in photo.size)
    return photo.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _cropped(photo: Image.Image, box: pb.SourceBox) -> Image.Image:
    """Return the part of the photo that the map covers; all of it where the plan names none."""
    left, top = max(0, round(box.left)), max(0, round(box.top))
    right = min(photo.width, round(box.left + box.width))
    bottom = min(photo.height, round(box.top + box.height))
    return photo.crop((left, top, right, bottom)) if left < right and top < bottom else photo


def _lit(photo: Image.Image, scale: Scale, values: Floats, *, smooth: bool) -> Image.Image:
    """Return the photo in muted gray with the colours of the map (height, width) over it."""
    known = ~np.isnan(values)
    positions = scale.positions(np.where(known, values, 0))
    width, height = photo.size
    rows = np.arange(height) * values.shape[0] // height
    columns = np.arange(width) * values.shape[1] // width
    if smooth:
        resampled = Image.fromarray(positions).resize(photo.size, Image.Resampling.BICUBIC)
        positions = np.clip(np.asarray(resampled), -1 if scale.diverging else 0, 1)
    else:
        positions = positions[rows][:, columns]
    colours = scale.colours(positions)
    opacity = np.where(known[rows][:, columns], colours[..., 3], 0)[..., None]
    muted = np.asarray(ImageEnhance.Color(photo).enhance(SATURATION), np.float32)
    ground = GROUND[0] + (GROUND[1] - GROUND[0]) / 255 * muted
    return _mixed(ground, colours[..., :3], opacity)


def _mixed(ground: Floats, colours: Floats, opacity: Floats) -> Image.Image:
    mixed = ground * (1 - opacity) + colours * opacity
    return Image.fromarray(np.rint(np.clip(mixed, 0, 255)).astype(np.uint8))


def _page(
    panel: Image.Image, scale: Scale, *, title: str, figure: str, subtitle: str, caption: str
) -> Image.Image:
    """Return the panel between its title and its colour bar."""
    width = max(panel.width, MIN_WIDTH - 2 * MARGIN) + 2 * MARGIN
    top = MARGIN + 62
    bar_top = top + panel.height + 16
    page = Image.new("RGB", (width, bar_top + BAR_HEIGHT + 48 + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    room = width - 2 * MARGIN
    figure_width = math.ceil(draw.textlength(figure, _font(figure, 24))) + 16
    _text(draw, (MARGIN, MARGIN), title, 24, INK, room - figure_width)
    _text(draw, (width - MARGIN, MARGIN), figure, 24, INK, room, anchor="ra")
    _text(draw, (MARGIN, MARGIN + 34), subtitle, 15, FAINT, room)
    page.paste(panel, ((width - panel.width) // 2, top))
    _draw_bar(page, draw, scale, bar_top, caption)
    return page


def _draw_bar(page: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, top: int, caption: str) -> None:
    """Draw the colours from left to right, with the values below and what they mean below these."""
    left, right = MARGIN, page.width - MARGIN
    low = -1.0 if scale.diverging else 0.0
    positions = np.linspace(low, 1.0, right - left, dtype=np.float32)
    colours = scale.colours(positions)
    ground = np.full(3, sum(GROUND) / 2, np.float32)
    strip = np.tile(colours, (BAR_HEIGHT, 1, 1))
    page.paste(_mixed(ground, strip[..., :3], strip[..., 3:]), (left, top))
    marks = (low, low / 2, 0.0, 0.5, 1.0) if scale.diverging else (0.0, 0.25, 0.5, 0.75, 1.0)
    for mark in marks:
        x = left + (right - left - 1) * (mark - low) / (1 - low)
        draw.line([(x, top + BAR_HEIGHT), (x, top + BAR_HEIGHT + 4)], FAINT)
        anchor = "la" if mark == low else "ra" if mark == 1 else "ma"
        _text(draw, (x, top + BAR_HEIGHT + 7), _mark_label(scale, mark), 14, INK, page.width, anchor=anchor)
    _text(draw, (page.width / 2, top + BAR_HEIGHT + 29), caption, 15, FAINT, right - left, anchor="ma")


def _mark_label(scale: Scale, mark: float) -> str:
    number = _number(mark * scale.limit)
    if scale.clipped and mark == 1:
        return f"{number} or more"
    return f"{number} or less" if scale.clipped and mark == -1 else number


def _subtitle(plan: pb.Plan, progress: float) -> str:
    parts = [f"{plan.model_name} version {plan.model_version}"]
    if plan.WhichOneof("method") == "gradient":
        reduction = name_of(pb.Gradient.ChannelReduction, plan.gradient.channel_reduction)
        parts.append(f"gradient{' x image' if plan.gradient.times_input else ''}, {reduction}")
    else:
        patch, stride = plan.occlusion.patch, plan.occlusion.stride
        parts.append(f"occlusion {patch.rows}x{patch.columns}, stride {stride.rows}x{stride.columns}")
    if progress < 1:
        parts.append(f"{progress:.0%} done")
    return "  ·  ".join(parts)


def _caption(plan: pb.Plan) -> str:
    loss = plan.objective.kind in LOSSES
    if plan.WhichOneof("method") == "gradient":
        return f"how strongly the {'loss' if loss else 'score'} reacts to a pixel"
    what = "loss" if loss else "score"
    if plan.occlusion.window_score == pb.Occlusion.WINDOW_SCORE_ABSOLUTE:
        return f"change of the {what} when hidden"
    return f"{what} {'gained' if loss else 'lost'} when hidden"


def _score_name(plan: pb.Plan) -> str:
    if plan.objective.kind in LOSSES:
        return name_of(pb.Objective.Kind, plan.objective.kind).lower().replace("_", " ")
    return "output"


def _number(value: float) -> str:
    return f"{value + 0.0:.3g}"  # adding 0 turns -0 into 0


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    room: float,
    anchor: str = "la",
) -> None:
    """Write one line, shortened to `room` pixels."""
    font = _font(text, size)
    line = text
    while len(line) > 1 and draw.textlength(line, font) > room:
        line = line.removesuffix("...")[:-1] + "..."
    draw.text(at, line, colour, font, anchor)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, or one of the system where the text has letters that it lacks."""
    if not text.replace("·", "").isascii():
        for name in FONTS:
            with contextlib.suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
