"""What Pillow raises on files that are no images."""

from __future__ import annotations

import struct

from PIL import Image

# On damaged files, besides its own UnidentifiedImageError (an OSError).
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
