"""The network's vision half, its losses, and the forms in which it is computed."""
