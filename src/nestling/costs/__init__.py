"""What a recipe needs and takes, from its configuration and the shape of its model, before there are weights or GPUs.

Memory is the estimate that training prints before its first step (`nestling.training.memory`), of a model without
weights.
"""
