"""The network's vision half in `network`, and the rooms around it; what stands here is the ground of all of them."""
