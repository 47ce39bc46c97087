"""Products of activations with weights, in C and in Triton, and the forms that they read."""
