// All kernels of hyperbolic layers, as one library: see library.py.

#include "attention.h"
#include "convolution.h"
#include "batchnorm.h"
#include "residual.h"
