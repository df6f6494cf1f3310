"""How hard the rendered benchmark is: every nuisance strength in one place.

Lengths are fractions of the figure's height or of the frame; colours are on the 0..255 scale; rates are probabilities.
A changed value changes the pictures: raise `RENDERER_VERSION` with it.
"""

from __future__ import annotations

RENDERER_VERSION = 1

# Framing of a photograph (RGB, NIR) and of a drawing (colour pencil, sketch).
PHOTO_SCALE = (0.90, 0.99)
PHOTO_SHIFT_X = 0.035
PHOTO_SHIFT_Y = 0.015
DRAWING_SCALE = (0.93, 0.98)
DRAWING_SHIFT_X = 0.02
DRAWING_SHIFT_Y = 0.01
TRUNCATION_RATE = 0.10
TRUNCATION_SCALE = (1.05, 1.20)
LEAN = 0.03
VIEW_WEIGHTS = {"front": 0.45, "back": 0.30, "side": 0.25}

# Visible photographs.
CAST = 0.12
BRIGHTNESS = (0.70, 1.15)
CONTRAST = (0.80, 1.10)
SATURATION = (0.65, 1.05)
SHOT_BRIGHTNESS = 0.10
SIDE_LIGHT = 0.25
FOLDS = 0.16
BLUR_RADIUS = (0.0, 0.9)
NOISE = (2.0, 9.0)
JPEG_QUALITY = (70, 90)
OCCLUSION_RATE = 0.15
OCCLUSION_SIZE = (0.14, 0.30)

# Near-infrared photographs: the share of a pattern's contrast that is left, and the spread of the lamp.
NIR_PATTERN_CONTRAST = 0.22
NIR_GAIN = (0.75, 1.15)
NIR_LAMP_FALLOFF = 0.45
NIR_NOISE = (5.0, 12.0)
NIR_REFLECTANCE_SPREAD = 0.04

# Colour-pencil drawings: error of the drawn colours, of the drawn outline, and share of paper left white.
CP_COLOUR_SHIFT = 26.0
CP_GLOBAL_SHIFT = 10.0
CP_PALENESS = (0.12, 0.38)
CP_STROKE = 0.45
CP_WOBBLE = 0.004
CP_PROPORTION_ERROR = 0.05
CP_LINE = 0.75

# Sketches: lines that are lost, and their strength.
SK_LINE = (0.70, 1.0)
SK_GAP = 0.16
SK_PATTERN_LINE = 0.65

# Captions: omissions and vagueness.
TEXT_OMIT = {"upper": 0.06, "lower": 0.08, "hair": 0.30, "bag": 0.15, "headwear": 0.15, "shoes": 0.35, "glasses": 0.35,
             "beard": 0.40, "build": 0.45, "scarf": 0.20}
TEXT_OMIT_COLOUR = 0.10
TEXT_VAGUE_COLOUR = 0.12
TEXT_OMIT_PATTERN = 0.25
