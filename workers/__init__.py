"""The worker side of tgi-async: one process per GPU (one on a CPU) that runs the model."""
