"""Wrong rules of the model, each of which the traces of real kernels have to contradict: lab/README.md."""
