// All kernels, as one source for the compiler.
#include "attend.cu"
#include "matmul.cu"
#include "rows.cu"
