"""Curricula: which sources a stage draws from, and in which shares or order.

One file each, and scores to order rows by.
"""
