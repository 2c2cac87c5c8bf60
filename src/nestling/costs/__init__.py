"""Estimates of the memory and GPU hours of a recipe, from its settings and the configuration of its model.

The estimate of memory is the one that training prints before its first step (`nestling.training.memory`), for a model
with fake tensors; neither weights nor GPUs are needed.
"""
