"""The REFER index over annotations that people already have; refer/README.md is its manual."""
