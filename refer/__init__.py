"""The REFER index over annotations that people already have; docs/data.md is its manual."""
