"""Several nodes for one model: node 0 leads, and the others run their part of the ranks for it."""
