"""One command that verifies and measures this project on the GPU that is there."""
