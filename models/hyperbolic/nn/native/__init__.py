"""C++ kernels of layers, built where a compiler is found: faster forms of what their modules do with plain torch."""
