"""Products of activations with weights, in C and in Triton, and their weight layouts."""
