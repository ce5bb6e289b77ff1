"""What the product is compared with: the same two questions, answered by other means.

Each peer is as quick as its kind can honestly be made, but for `seed`, which is as its users write it.
"""
