"""
Gradient descent
================

To be written.
"""

print("placeholder")
