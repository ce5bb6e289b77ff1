"""The peers that the product is compared with: they answer the same two requests by other means.

Each peer is as fast as its kind can honestly be made, except `seed`, which is written as its users write it.
"""
