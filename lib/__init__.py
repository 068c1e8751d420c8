"""The vision half of the network in `network`, and the packages around it; modules in this folder serve all of them."""
