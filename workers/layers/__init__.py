"""The layers of a model, in the form that a device runs them fastest."""
