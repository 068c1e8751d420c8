"""Overlays, panels, sheets and curves. Imports nothing: the flags of its command are checked first."""
