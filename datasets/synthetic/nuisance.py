"""How hard the rendered benchmark is: every nuisance strength in one place.

Lengths are fractions of the figure's height or of the frame; colours are on the 0..255 scale; rates are probabilities.
A changed value changes the pictures: raise `RENDERER_VERSION` with it.
"""

from __future__ import annotations

RENDERER_VERSION = 3

# Framing of a photograph (RGB, NIR) and of a drawing (colour pencil, sketch).
PHOTO_SCALE = (0.95, 0.98)
PHOTO_SHIFT_X = 0.010
PHOTO_SHIFT_Y = 0.006
DRAWING_SCALE = (0.95, 0.98)
DRAWING_SHIFT_X = 0.008
DRAWING_SHIFT_Y = 0.005
TRUNCATION_RATE = 0.02
TRUNCATION_SCALE = (1.03, 1.12)
LEAN = 0.008
VIEW_WEIGHTS = {"front": 0.55, "back": 0.30, "side": 0.15}

# Visible photographs.
CAST = 0.05
BRIGHTNESS = (0.90, 1.08)
CONTRAST = (0.92, 1.06)
SATURATION = (0.88, 1.05)
SHOT_BRIGHTNESS = 0.05
SIDE_LIGHT = 0.10
FOLDS = 0.08
BLUR_RADIUS = (0.0, 0.5)
NOISE = (2.0, 5.0)
JPEG_QUALITY = (70, 90)
OCCLUSION_RATE = 0.05
OCCLUSION_SIZE = (0.12, 0.22)
# How far the channels of a background differ: walls and floors, and the things in front of them.
BACKGROUND_TINT = (10, 24)

# Near-infrared photographs: the step between the two colours of a pattern, the spread of a material's reflectance, the
# lamp's strength, and the light that the background loses.
NIR_PATTERN_CONTRAST = 0.13
NIR_GAIN = (0.94, 1.06)
NIR_LAMP_FALLOFF = 0.70
NIR_NOISE = (3.0, 6.0)
NIR_REFLECTANCE_SPREAD = 0.04

# Colour-pencil drawings: errors of colour (per thing and per drawing), paper left white everywhere and between strokes,
# error of the drawn points and of the width of the body, darkness of the outline.
CP_COLOUR_SHIFT = 26.0
CP_GLOBAL_SHIFT = 12.0
CP_PALENESS = (0.10, 0.22)
CP_STROKE = 0.65
CP_WOBBLE = 0.005
CP_PROPORTION_ERROR = 0.05
CP_LINE = 0.75

# Sketches: gain of the lines, share of them that is lost, and reach of the filter in pixels of a 128-row picture.
SK_LINE = (2.4, 3.0)
SK_GAP = 0.04
SK_SOFTNESS = 3.0

# Captions: what is left out or said vaguely, and how often the usual word is taken without looking for a synonym.
TEXT_OMIT = {
    "upper": 0.03,
    "lower": 0.04,
    "hair": 0.25,
    "bag": 0.10,
    "headwear": 0.10,
    "shoes": 0.40,
    "glasses": 0.30,
    "beard": 0.35,
    "build": 0.60,
    "scarf": 0.15,
}
TEXT_OMIT_COLOUR = 0.05
TEXT_VAGUE_COLOUR = 0.06
TEXT_OMIT_PATTERN = 0.25
TEXT_CANONICAL = 0.80

# Factor on the head in every layout but ORBench: what survives a change of clothes must be seen in 128 rows.
HEAD_ZOOM = 1.45
