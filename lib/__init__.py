"""The network's vision half, its losses and metrics, and everything a run needs around them."""
