"""Overlays, panels, sheets and curves. Imports nothing, so that the flags of its command are checked fast."""
