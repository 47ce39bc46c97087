"""How the weights of a layer lie in a checkpoint and on a device: one file a method."""
